"""What a report may cost: processor time of real counts from sample rows to a whole page."""

import json
import time

import pytest
from places import REPOSITORY

from analysis import foreign, report

COUNTS = REPOSITORY / "tests" / "data" / "deepscaler32k"


@pytest.mark.slow
def test_a_page_of_two_methods_with_1060_problems_and_128_samples_takes_four_seconds(tmp_path):
    for name in ("base", "rl"):
        rows = map(json.loads, (COUNTS / f"{name}.jsonl").read_text("utf-8").splitlines())
        lines = [f"{row['id']},{int(j < row['c'])}\n" for row in rows for j in range(row["n"])]
        (tmp_path / f"{name}.csv").write_text("problem_id,correct\n" + "".join(lines))
    start = time.process_time()
    study = foreign.load([f"{name}={tmp_path / name}.csv" for name in ("base", "rl")])
    lines = report.write(study, "base", tmp_path / "out", [], [])
    assert time.process_time() - start <= 4
    assert any("gains for k = 1 to 10 and loses for k = 6" in line for line in lines)
    every = (tmp_path / "out" / "paired_pass_at_k.csv").read_text("utf-8").splitlines()
    assert len(every) == 129 and every[0].startswith("arm,baseline,benchmark,k,difference,low,high,verdict")
