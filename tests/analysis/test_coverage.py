"""The simulation of the report's intervals: its table is whole and keeps its promises, and important cells repeat."""

import csv

import numpy as np
import pytest

from experiments.coverage import run

CELLS = {run._name(cell): cell for cell in run.cells()}


def kept(row: dict, error: float = 0.0) -> bool:
    """Whether a share is as wanted; `error` is the luck of fewer draws that it is allowed."""
    wanted, share = row["wanted"], float(row["share"])
    if wanted.startswith("nothing"):
        return True
    if " to " in wanted:
        low, high = map(float, wanted.split(" to "))
        return low <= share <= high
    return share + error >= float(wanted[3:]) if wanted.startswith(">=") else share - error <= float(wanted[3:])


def test_the_table_holds_every_cell_and_each_keeps_its_promise():
    rows = list(csv.DictReader((run.HERE / "results.csv").open(encoding="utf-8")))
    assert [run._name(row) for row in rows] == list(CELLS) and len(rows) <= 150
    assert all(int(row["draws"]) >= 2000 for row in rows)
    assert [row for row in rows if not kept(row)] == []


def test_where_students_t_is_right_intervals_are_about_as_wide():
    rows = [row for row in csv.DictReader((run.HERE / "results.csv").open(encoding="utf-8")) if row["t_share"]]
    ratios = [float(r["width"]) / float(r["t_width"]) for r in rows if 0.94 <= float(r["t_share"]) <= 0.97]
    assert len(ratios) > 20 and np.median(ratios) < 1.03 and np.sort(ratios)[-3] < 1.2 and max(ratios) < 1.5


IMPORTANT = [
    name
    for name, cell in CELLS.items()
    if (cell["kind"] in ("one_arm", "difference") and cell["truth"] in ("easy", "real") and cell["k"] in (1, 8))
    or (cell["kind"].endswith("_seeds") and cell["seeds"] == 3 and cell["problems"] == 500)
    or cell["kind"] == "false_alarm"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTANT)
def test_a_thousand_draws_keep_the_promise_too(name, monkeypatch):
    monkeypatch.setattr(run, "DRAWS", 1000)
    monkeypatch.setattr(run, "POPULATION", 500_000)
    made = run.SIMULATIONS[CELLS[name]["kind"]](CELLS[name], np.random.default_rng(5))
    assert kept({key: str(value) for key, value in made.items()}, error=0.016), made  # two standard errors
