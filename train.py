"""Train a policy with an exploration strategy, and evaluate it before and after.

python train.py exploration=neighbor_mix mix_rate=0.1 k=3
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.train import main

    cli.prepare("config")
    cli.run(main)
