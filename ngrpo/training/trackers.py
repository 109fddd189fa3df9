"""Trackers, a class for each: TensorBoard, Weights & Biases, MLflow, trackio and csv files.

Each is a logger of Lightning where there is one, and the calls that such loggers do not share.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger


class Tracker:
    """A logger of Lightning as a tracker: it takes figures and a configuration, no tables and no texts."""

    def __init__(self, logger: Logger):
        self.logger: Any = logger

    @property
    def link(self) -> str | None:
        """Where to see the run: a URL, or a place in the run directory."""
        return None

    def configuration(self, config: Mapping[str, Any]) -> None:
        """All of the composed configuration."""
        self.logger.log_hyperparams(dict(config))

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """Figures of an RL step."""
        self.logger.log_metrics(dict(figures), step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A small table."""

    def text(self, name: str, text: str, step: int) -> None:
        """Markdown."""

    def close(self, succeeded: bool) -> None:
        """Lets go of what it holds."""
        self.logger.finalize("success" if succeeded else "failed")


class Csv(Tracker):
    """Files below csv/ of the run directory, in a folder for each time that the run is begun or goes on."""

    def __init__(self, save_dir: Path):
        super().__init__(CSVLogger(save_dir, "csv", flush_logs_every_n_steps=1))
        self.folder = Path(self.logger.log_dir)
        _ = self.logger.experiment  # made now: later it would warn of our own files in its folder

    @property
    def link(self) -> str:
        return f"csv/{self.folder.name}"

    def configuration(self, config: Mapping[str, Any]) -> None:
        self._write("configuration.json", json.dumps(config, indent=1))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        cells = io.StringIO(newline="")
        csv.writer(cells).writerows([columns, *rows])
        self._write(f"{name}-{step}.csv", cells.getvalue())

    def text(self, name: str, text: str, step: int) -> None:
        self._write(f"{name}-{step}.md", text)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="")


class TensorBoard(Tracker):
    """Event files below tensorboard/ of the run directory."""

    def __init__(self, save_dir: Path):
        # Without a placeholder figure, which would stand as the run's result beside its configuration.
        super().__init__(TensorBoardLogger(save_dir, "tensorboard", version="", default_hp_metric=False))

    @property
    def link(self) -> str:
        return "tensorboard"

    def configuration(self, config: Mapping[str, Any]) -> None:
        self.text("configuration", f"~~~~json\n{json.dumps(config, indent=1)}\n~~~~", 0)

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        super().figures(_without_at(figures), step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        self.text(name, "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines), step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.add_text(name, text, step)
        self.logger.save()


class Wandb(Tracker):
    """A run of Weights & Biases, on its server or, `offline`, below wandb/ of the run directory for `wandb sync`."""

    def __init__(self, save_dir: Path, project: str, offline: bool, entity: str | None = None):
        # A run that was interrupted and goes on is a second one there, in the same group.
        name, place = save_dir.name, {"entity": entity, "group": save_dir.name}
        super().__init__(WandbLogger(name, save_dir, offline=offline, project=project, **place))

    @property
    def link(self) -> str:
        run = self.logger.experiment
        return run.url or f"wandb/{Path(run.dir).parent.name}"

    def configuration(self, config: Mapping[str, Any]) -> None:
        self.logger.experiment.config.update(dict(config), allow_val_change=True)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.logger.log_table(name, list(columns), [list(row) for row in rows], step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.log_table(name, ["text"], [[text]], step=step)

    def close(self, succeeded: bool) -> None:
        self.logger.experiment.finish(exit_code=int(not succeeded))


class MLflow(Tracker):
    """A run of MLflow, on a tracking server or in a database in the run directory."""

    def __init__(self, save_dir: Path, experiment: str, tracking_uri: str | None = None):
        local = tracking_uri is None
        self.uri = tracking_uri or f"sqlite:///{save_dir.absolute()}/mlflow.db"
        artifacts = (save_dir / "mlruns").absolute().as_uri() if local else None
        super().__init__(MLFlowLogger(experiment, save_dir.name, self.uri, artifact_location=artifacts))

    @property
    def link(self) -> str:
        run, known = self.logger.run_id, self.logger.experiment_id
        return f"{self.uri}/#/experiments/{known}/runs/{run}" if self.uri.startswith("http") else f"mlflow.db#{run}"

    def configuration(self, config: Mapping[str, Any]) -> None:
        super().configuration(config)  # which cuts values at 250 characters
        self.logger.experiment.log_dict(self.logger.run_id, dict(config), "configuration.json")

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        super().figures(_without_at(figures), step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        data = {column: [row[at] for row in rows] for at, column in enumerate(columns)}
        self.logger.experiment.log_table(self.logger.run_id, data, f"{name}-{step}.json")

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.log_text(self.logger.run_id, text, f"{name}-{step}.md")


class Trackio(Tracker):
    """A run of trackio, in its own place for all projects on this machine (TRACKIO_DIR), or in a Space of a hub."""

    def __init__(self, save_dir: Path, project: str, space_id: str | None = None):
        import trackio

        self.library = trackio
        self.project, self.name, self.space_id = project, save_dir.name, space_id

    @property
    def link(self) -> str:
        return self.space_id or f"trackio show --project {self.project}"

    def configuration(self, config: Mapping[str, Any]) -> None:
        self.library.init(
            self.project, self.name, space_id=self.space_id, config=dict(config), resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        self.library.log(dict(figures), step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.library.log({name: self.library.Table(list(columns), [list(row) for row in rows])}, step)

    def text(self, name: str, text: str, step: int) -> None:
        self.library.log({name: self.library.Markdown(text)}, step)

    def close(self, succeeded: bool) -> None:
        self.library.finish()


def _without_at(figures: Mapping[str, float]) -> dict[str, float]:
    """pass@8 as pass_at_8, for trackers whose names have no such character."""
    return {name.replace("@", "_at_"): value for name, value in figures.items()}
