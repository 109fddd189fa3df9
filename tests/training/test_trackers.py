"""Every tracker holds what it was told, read back with its own client, offline; one that fails ends no run."""

import csv
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from study import make_run

from ngrpo.composed import instantiate
from ngrpo.evaluation.benchmarks import results_of
from ngrpo.rundir.schema import eval_samples, read_run
from ngrpo.training.trackers import Csv
from ngrpo.training.tracking import SAMPLES, Trackers, grouped

CONFIG = {"seed": 3, "algorithm": {"kl": {"coefficient": 0.25}}, "exploration": {"recipe": {"metric": "cosine" * 60}}}
METRICS = {"reward": 0.5, "kl": 0.125, "entropy": None}
TIMINGS = {"rollout_tokens_per_second": 2048.0, "seconds_update": 0.5}
SCALARS = {"reward/mean": 0.5, "loss/kl": 0.125, "rollout/tokens_per_second": 2048.0, "time/update": 0.5}
PASS, MEAN = 0.75, 0.3125  # of four problems with 8 samples each, of which 0, 1, 1 and 8 are correct, at k = 8


def node(name: str, **settings) -> dict:
    return {"_target_": f"ngrpo.training.trackers.{name}", **settings}


@pytest.fixture
def told(tmp_path) -> Callable[..., Path]:
    """Tells a tracker of two RL steps and an evaluation, and returns the run directory."""

    def tell(name: str, **settings) -> Path:
        run = make_run(tmp_path, "token_sampling", 3, [0, 1, 1, 8])
        trackers = Trackers({name: lambda: instantiate(node(name, **settings), save_dir=run)}, CONFIG)
        assert trackers.links[name]
        for step in (3, 4):
            trackers.step(step, METRICS, TIMINGS)
        samples = eval_samples(run, "bench", 4)
        trackers.evaluation("bench", 4, results_of(samples), samples)
        assert trackers.open, "it has failed"
        trackers.close(succeeded=True)
        return run

    return tell


def holds_ten_answers(text: str) -> bool:
    return text.count("### p") == SAMPLES == 10 and "What is p03?" in text and r"\boxed{0}" in text


def test_figures_stand_in_groups():
    assert grouped({**METRICS, **TIMINGS}) == SCALARS
    assert grouped({"value_loss": 1.0, "grad_norm": 2.0}) == {"loss/value_loss": 1.0, "optimizer/grad_norm": 2.0}


def test_csv(told):
    folder = told("Csv") / "csv" / "version_0"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["loss/kl"]] == ["3", "4"]
    assert {key: float(rows[0][key]) for key in SCALARS} == SCALARS
    assert [row["eval/bench/pass@8"] for row in rows if row["eval/bench/pass@8"]] == [str(PASS)]
    assert json.loads((folder / "configuration.json").read_text()) == CONFIG
    table = list(csv.reader((folder / "eval/bench/table-4.csv").open()))
    assert table[0] == ["metric", "value", "low", "high"] and table[1][:2] == ["mean@8", str(MEAN)]
    assert holds_ten_answers((folder / "eval/bench/samples-4.md").read_text())


def test_tensorboard(told):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(told("TensorBoard") / "tensorboard"))
    events.Reload()
    for name, value in {**SCALARS, "eval/bench/pass_at_8": PASS}.items():
        (last, *_) = reversed(events.Scalars(name))
        assert (last.step, last.value) == (4, value)

    def text(name: str) -> str:
        (event,) = events.Tensors(f"{name}/text_summary")
        return event.tensor_proto.string_val[0].decode()

    assert json.loads(text("configuration").split("~~~~")[1].removeprefix("json")) == CONFIG
    assert f"| mean@8 | {MEAN} |" in text("eval/bench/table") and holds_ten_answers(text("eval/bench/samples"))


def test_mlflow(told):
    tracking = pytest.importorskip("mlflow.tracking")
    run = told("MLflow", experiment="trial")
    client = tracking.MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("trial")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert {key: found.data.metrics[key] for key in SCALARS} == SCALARS
    assert (
        found.data.metrics["eval/bench/pass_at_8"] == PASS and found.data.params["algorithm/kl/coefficient"] == "0.25"
    )
    (place,) = (run / "mlruns").glob("*/artifacts")
    assert json.loads((place / "configuration.json").read_text()) == CONFIG
    table = json.loads((place / "eval/bench/table-4.json").read_text())
    assert table["columns"] == ["metric", "value", "low", "high"] and table["data"][0][:2] == ["mean@8", MEAN]
    assert holds_ten_answers((place / "eval/bench/samples-4.md").read_text())


def wandb_records(path: Path) -> Iterator:
    """The records of an offline run: blocks of 32 KiB, of chunks with a head of seven bytes, after a head of seven."""
    kinds = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 < len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole of a record, or its last chunk
            record = kinds.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb(told):
    wandb = pytest.importorskip("wandb")
    run = told("Wandb", project="trial", offline=True)
    wandb.teardown()  # waits until the service has written its file
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    config, figures = {}, {}
    for record in wandb_records(path):
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        figures |= {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert {key: figures[key] for key in SCALARS} == SCALARS and figures["eval/bench/pass@8"] == PASS

    def table(name: str) -> list[list]:
        return json.loads((path.parent / "files" / figures[f"eval/bench/{name}/path"]).read_text())["data"]

    assert table("table")[0][:2] == ["mean@8", MEAN] and holds_ten_answers(table("samples")[0][0])


def test_trackio(told, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    run = told("Trackio", project="trial")
    config = storage.get_run_config("trial", run.name)
    assert config and {key: config[key] for key in CONFIG} == CONFIG
    found: dict = {}
    for row in storage.get_logs("trial", run.name):
        found |= row
    assert {key: found[key] for key in SCALARS} == SCALARS and found["eval/bench/pass@8"] == PASS
    assert found["eval/bench/table"]["_value"][0]["value"] == MEAN
    assert holds_ten_answers(found["eval/bench/samples"]["_value"])


@pytest.mark.parametrize("verb", ["configuration", "figures", "text", "close"])
def test_one_that_fails_is_told_once_and_the_others_go_on(tmp_path, capsys, verb):
    run = make_run(tmp_path, "token_sampling", 3, [0, 1, 1, 8])

    class Broken(Csv):
        pass

    def fail(*arguments, **named):
        raise OSError("the server\nis gone")

    setattr(Broken, verb, fail)
    broken = tmp_path / "broken"
    trackers = Trackers({"mine": lambda: Broken(broken), "csv": lambda: instantiate(node("Csv"), save_dir=run)}, CONFIG)
    samples = eval_samples(run, "bench", 4)
    for step in (3, 4):
        trackers.step(step, METRICS, TIMINGS)
        trackers.evaluation("bench", step, results_of(samples), samples)
    trackers.close(succeeded=False)
    line = "note: logger=mine failed and is left out from here on: OSError: the server is gone"
    assert capsys.readouterr().out.splitlines() == [line]
    assert len(list((run / "csv/version_0/eval/bench").glob("samples-*.md"))) == 2


def test_a_run_tells_its_trackers_and_says_where(tmp_path):
    run = tmp_path / "run"
    words = ["trainer=smoke", "trainer.threads=1", "benchmark=story_math", "logger=csv", f"hydra.run.dir={run}"]
    warm.finish("train.py", tmp_path / "log", *words)
    assert read_run(run).content["trackers"] == {"csv": "csv/version_0"}
    rows = list(csv.DictReader((run / "csv" / "version_0" / "metrics.csv").open()))
    trained = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["reward/mean"] for row in rows if row["reward/mean"]] == [row["reward"] for row in trained]
    assert {row["step"] for row in rows if row["eval/story_math/mean@4"]} == {"0", "2"}
    config = json.loads((run / "csv" / "version_0" / "configuration.json").read_text())
    assert config["steps"] == 2 and config["exploration"]["_target_"].endswith("TokenSampling")
