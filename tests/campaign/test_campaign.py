"""One or two of each thing that the campaign does to a run."""

import time

import pytest

from tests.campaign import storm


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("campaign") / "whole"
    began = time.monotonic()
    storm.run(place)
    return storm.digests(place), time.monotonic() - began


@pytest.mark.parametrize(
    "case",
    [
        ("signals", "SIGINT", "import torch", 1),
        ("signals", "SIGHUP", "os.rename metrics.csv", 2),
        ("signals", "SIGTERM", "open samples/eval/partial/story_math-#-#.parquet", 2),
        ("full", "full", "open .hydra/config.yaml", 1),
        ("full", "full", "open checkpoints/step-#.pt", 2),
        ("full", "full", "open hf.partial/config.json", 1),
        ("kills", "SIGKILL", "", 3),
    ],
    ids=lambda case: "-".join(map(str, case[1:3])).replace(" ", "-").replace("/", "-"),
)
def test_a_run_ends_in_order_and_comes_out_the_same(whole, case, tmp_path, monkeypatch):
    monkeypatch.setattr(storm, "OUT", tmp_path)
    assert storm.outcome(case, *whole) is None
