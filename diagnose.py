"""Whether exploration is a model's and task's bottleneck, told from samples of the untrained model, before anyone trains.

python diagnose.py model=<directory or hub id> task=jsonl task.path=<file>
python diagnose.py strategies='[token_sampling,neighbor_mix,rate_matched_greedy]' mix_rate=0.3
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.diagnose import main

    cli.prepare("diagnose")
    cli.run(main, "diagnose")
