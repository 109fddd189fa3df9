"""Sample benchmarks with a trained run or any Hugging Face model and print the Pass@k table."""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from typing import Any

from omegaconf import DictConfig

from ngrpo import cli


def main(config: DictConfig) -> dict[str, Any]:
    """Compose, build, sample, report; the same command again continues where it was interrupted."""
    from ngrpo import build
    from ngrpo.evaluation.benchmarks import sample
    from ngrpo.evaluation.table import print_results
    from ngrpo.models import files
    from ngrpo.rundir.schema import read_results

    if config.run:
        config.model.update(files.prompt_settings(config.run, config.trust_changed))
    request = cli.Request(config, "evaluation")
    with request.open() as run:
        if run.status == "finished":
            print("already evaluated; fresh=true starts anew")
        else:
            sample(run, {**request.labels("exploration"), "algorithm": "none"}, *build.evaluation(request, run))
            run.finish()
        print_results(read_results(run.path), run.path)
        return read_results(run.path)


if __name__ == "__main__":
    cli.prepare("evaluate")
    cli.run(main, "evaluate")
