"""Sample benchmarks with a trained run or any Hugging Face model and print the Pass@k table.

python evaluate.py run=outputs/story_math/<run>
python evaluate.py model=<directory or hub id> benchmark='[story_math,story_math_hard]' n=32
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.evaluate import main

    cli.prepare("evaluate")
    cli.run(main, "evaluate")
