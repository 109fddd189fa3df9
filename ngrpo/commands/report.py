"""Turn runs, or sample files of other tools, into a comparison: tables, statistics, figures, one HTML page."""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ngrpo import cli, composed


def main(config: DictConfig) -> None:
    """Compose, load, compare, write."""
    from analysis import declared, fairness, foreign, load, report

    plain = composed.plain(config)
    roots, files = _listed(plain["runs"]), _listed(plain["samples"])
    if bool(roots) == bool(files):
        raise load.LoadError("runs= or samples=, one of them: runs=outputs/story_math")
    kinds = load.USUAL if plain["kinds"] is None else _listed(plain["kinds"])
    study = load.load(roots, kinds, plain["trust_changed"]) if roots else foreign.load(files, plain["columns"])
    baseline = plain["baseline"] or (fairness.PLAIN if roots else study.arms[0])
    out = Path(plain["out"] or (Path(roots[0], "report") if roots else "report"))
    papers, ks = _listed(plain["published"]), [int(k) for k in _listed(plain["pass_k"])]
    stated = declared.Declared([str(p) for p in _listed(plain["primary"])], plain["margin"], plain["detect"])
    print("\n".join(report.write(study, baseline, out, ks, papers, roots, stated)))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


if __name__ == "__main__":
    cli.prepare("report")
    cli.run(main, "report")
