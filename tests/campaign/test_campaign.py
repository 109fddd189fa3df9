"""One or two of each thing that the campaign does to a run."""

import pytest

from tests.campaign import storm


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize(
    "case",
    [
        ("signals", "SIGINT", "import torch", 1),
        ("signals", "SIGHUP", "os.rename metrics.csv", 2),
        ("signals", "SIGTERM", "open samples/eval/partial/story_math-#-#.parquet", 2),
        pytest.param(("full", "full", "open .hydra/config.yaml", 1), marks=pytest.mark.slow),
        ("full", "full", "open checkpoints/step-#.pt", 2),
        pytest.param(("full", "full", "open hf.partial/config.json", 1), marks=pytest.mark.slow),
        ("full", "full", "open run.json", 3),
        ("kills", "SIGKILL", "exploration=gumbel_soft", 3),
        pytest.param(("ranks", "SIGTERM", "1", 0), marks=pytest.mark.slow),  # three starts of two processes
        ("damage", "flip", "finished:hf/model.safetensors", 0),
        ("damage", "cut", "begun:metrics.csv", 0),
        ("damage", "empty", "begun:samples/train/1.parquet", 0),
        ("damage", "gone", "begun:run.json", 0),
    ],
    ids=lambda case: "-".join(map(str, case[1:3])).replace(" ", "-").replace("/", "-"),
)
def test_a_run_ends_in_order_and_comes_out_the_same(case, out, monkeypatch):
    monkeypatch.setattr(storm, "OUT", out)
    assert storm.outcome(case) is None
