"""Whether exploration is a model's and task's bottleneck, told from samples of the untrained model, before anyone trains."""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from typing import Any

from omegaconf import DictConfig

from ngrpo import cli, composed


def main(config: DictConfig) -> dict[str, Any]:
    """Compose, sample, diagnose, report; the same command again continues where it was interrupted."""
    from analysis import diagnosis, diagnosis_page
    from ngrpo import build
    from ngrpo.evaluation.diagnosis import sample
    from ngrpo.rundir.files import write_atomically

    request = cli.Request(config, "diagnosis")
    with request.open() as run:
        if run.status == "finished":
            print("already diagnosed; fresh=true starts anew")
        else:
            nodes = {name: part.exploration for name, part in cli.compositions(list(config.strategies)).items()}
            run.save(compositions={name: composed.plain(node) for name, node in nodes.items()})
            if not (run.path / "timings.csv").exists():  # written after everything else that is sampled
                sample(*build.diagnosis(request, run, nodes))
        found = diagnosis.diagnose(diagnosis.read(run.path))
        if run.status != "finished":
            for name, content in diagnosis_page.files_of(found, run.path).items():
                write_atomically(run.path / name, content)
            run.finish()
        print(diagnosis_page.terminal(found, run.path))
        return found.figures


if __name__ == "__main__":
    cli.prepare("diagnose")
    cli.run(main, "diagnose")
