"""Check data sets: golds go through their own grader as they stand and in other spellings, and rows are looked at.

python audit.py benchmark='[aime25,math500]' paths.data=<directory with aime25.jsonl and math500.jsonl>
python audit.py task=jsonl task.path=<file.jsonl or .parquet>
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.audit import main

    cli.prepare("audit")
    cli.run(main, "audit")
