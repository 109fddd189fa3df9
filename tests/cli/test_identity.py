"""Which command lines are the same run: told by the directory that Hydra is given for them."""

import json
import shutil

import configurations
import pytest
from hydra import compose

from ngrpo.models.files import BUNDLED
from ngrpo.rundir import schema

TINY = BUNDLED["ngrpo:tiny"]


def directory(*overrides: str, config: str = "config") -> str:
    with configurations.composing():
        return compose(config, list(overrides), return_hydra_config=True).hydra.run.dir


@pytest.mark.parametrize(
    "override",
    ["trainer.threads=3", "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=gpu", "model.path={moved}",
     "model.path={tiny}", "+engine.gpu_memory_utilization=0.5", "logger=tensorboard", "fresh=true", "paths.data=somewhere",
     "grading.max_ungraded_share=0.5", "task.size=4096"],
)  # fmt: skip
def test_where_and_on_what_it_runs_is_no_part_of_a_run(tmp_path, override):
    moved = shutil.copytree(TINY, tmp_path / "moved")
    assert directory(override.format(moved=moved, tiny=TINY)) == directory()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "trainer.precision=bfloat16", "trainer.micro_batch_rows=8", "evaluation.rows_per_batch=64", "task.size=4095",
     "engine._target_=ngrpo.rollout.engines.other.Engine", "model.path={trained}", "model.prompt=chat", "steps=51"],
)  # fmt: skip
def test_what_changes_a_number_is(tmp_path, override):
    trained = shutil.copytree(TINY, tmp_path / "trained")
    weights = (trained / "model.safetensors").read_bytes()
    (trained / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert directory(override.format(trained=trained)) != directory()


@pytest.mark.parametrize("config", ["config", "evaluate", "diagnose"])
def test_the_version_of_the_results_is(monkeypatch, config):
    before = directory(config=config)
    monkeypatch.setattr(schema, "RESULTS_VERSION", schema.RESULTS_VERSION + 1)
    assert directory(config=config) != before


def test_an_evaluated_run_is_known_by_its_weights(tmp_path):
    runs = []
    for name in ("run", "moved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"status": "finished", "config": {"algorithm": {}}}))
        shutil.copytree(TINY, tmp_path / name / "hf")
        runs.append(directory(f"run={tmp_path / name}", config="evaluate").rpartition("-")[2])
    weights = bytearray((tmp_path / "run" / "hf" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "run" / "hf" / "model.safetensors").write_bytes(weights)
    assert directory(f"run={tmp_path / 'run'}", config="evaluate").rpartition("-")[2] not in runs
