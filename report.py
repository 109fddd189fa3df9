"""Turn runs, or sample files of other tools, into a comparison: tables, statistics, figures, one HTML page.

python report.py runs=outputs/story_math baseline=token_sampling
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.report import main

    cli.prepare("report")
    cli.run(main, "report")
