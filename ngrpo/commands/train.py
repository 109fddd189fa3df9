"""Train a policy with an exploration strategy, and evaluate it before and after."""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from typing import Any

from omegaconf import DictConfig

from ngrpo import cli


def main(config: DictConfig) -> dict[str, Any] | None:
    """Compose, build, run, report; returns the content of results.json, None on all ranks but the first."""
    from ngrpo import build, loop
    from ngrpo.evaluation.pruning import Pruned
    from ngrpo.evaluation.table import print_results
    from ngrpo.rundir.schema import read_results

    request = cli.training_request(config)
    devices = {name: config.trainer[name] for name in ("accelerator", "devices", "strategy", "cpu_offload")}
    if request.follows:
        return None if request.is_over else loop.run(build.training(request, None), **devices)
    with request.open() as run:
        if run.status == "finished":
            print(f"already finished at RL step {config.steps}; fresh=true starts anew")
        else:
            try:
                loop.run(build.training(request, run), **devices)
            except Pruned as stop:
                print(stop)
                return {"pruned": str(stop)}
            run.finish()
        print_results(read_results(run.path), run.path)
        return read_results(run.path)


if __name__ == "__main__":
    cli.prepare("config")
    cli.run(main)
