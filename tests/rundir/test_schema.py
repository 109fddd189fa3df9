"""The one reader of run.json and results.json: kinds, what a damaged file says, and that nobody else reads them."""

import ast
import json
import re

import pytest
import warm
from places import REPOSITORY
from study import make_run

from ngrpo.rundir import schema
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.schema import KINDS, Unreadable, config_hash, read_results, read_run

CONFIG = {"seed": 3, "algorithm": {}}
HASH = config_hash(CONFIG)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_that_was_written_is_read(tmp_path, kind):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH, kind=kind) as run:
        assert run.status is None
    record = read_run(tmp_path)
    assert (record.kind, record.status, record.seed, record.config_hash) == (kind, "running", 3, HASH)
    assert record.results_version == schema.RESULTS_VERSION and record.config == CONFIG and record.path == tmp_path
    assert json.loads((tmp_path / "run.json").read_text())["kind"] == kind


@pytest.mark.parametrize(
    ("config", "typed", "kind"),
    [
        ({"strategies": ["token_sampling"], "algorithm": {}}, "", "diagnosis"),
        ({"run": "outputs/x"}, "", "evaluation"),
        ({"algorithm": {}}, "- trainer=smoke\n- steps=1\n", "smoke"),
        ({"algorithm": {}}, "- sweep.trial='{}'\n- trainer=smoke\n", "trial"),
        ({"algorithm": {}}, "- seed=1\n", "run"),
        ({"algorithm": {}}, None, "run"),
    ],
)
def test_without_a_kind_it_is_told_from_the_configuration(tmp_path, config, typed, kind):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "config": config}))
    if typed is not None:
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "overrides.yaml").write_text(typed)
    assert read_run(tmp_path).kind == kind


def test_no_results_are_none_and_no_record_is_no_run(tmp_path):
    assert read_results(tmp_path) == {}
    with pytest.raises(Unreadable, match=r"holds no run\.json, so it is no run directory"):
        read_run(tmp_path)


DAMAGED = {
    "empty": b"",
    "cut off": b'{"status": "fini',
    "list": b"[1]",
    "null": b"null",
    "latin": b'{"status": "\xe9"}',
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", ["run.json", "results.json"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as error:
        read_run(tmp_path) if name == "run.json" else read_results(tmp_path)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", []), ("config", None), ("kind", "walk"), ("kind", ["run"]), ("data", [1]), ("data", "v1"), ("seed", "x"),
     ("seed", [0]), ("status", 3), ("config_hash", 7), ("earlier", 3), ("resumed", "x"), ("wall_seconds", "long")],
)  # fmt: skip
def test_a_record_of_the_wrong_shape_is_damaged_too(tmp_path, key, value):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH):
        pass
    content = json.loads((tmp_path / "run.json").read_text()) | {key: value}
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(Unreadable, match=rf"run\.json is damaged.*{key}"):
        read_run(tmp_path)
    with pytest.raises(Unreadable, match=r"damaged.*fresh=true"):
        RunDirectory.open(tmp_path, CONFIG, hash=HASH)


def test_a_record_that_says_little_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}))
    record = read_run(tmp_path)
    assert (record.status, record.kind, record.seed, dict(record.config)) == ("finished", "evaluation", None, {})


def test_entry_points_tell_a_damaged_file_in_one_line(tmp_path):
    run, log = make_run(tmp_path, "token_sampling", 0, [1, 2]), tmp_path / "log"
    (run / "run.json").write_text("{")
    for script, words, status in (
        ("train.py", [f"hydra.run.dir={run}", "benchmark=story_math"], 2),
        ("evaluate.py", [f"run={run}"], 2),
        ("evaluate.py", [f"hydra.run.dir={run}", "benchmark=story_math"], 2),
        ("diagnose.py", [f"hydra.run.dir={run}"], 2),
        ("report.py", [f"runs={run}"], 2),
    ):
        told = warm.finish(script, log, *words, status=status)
        assert len(told.splitlines()) == 1 and told.startswith("error: "), told
        assert "run.json" in told and "damaged" in told, told


def test_damaged_results_are_told_in_one_line_and_not_written_over(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    typed = ["trainer=smoke", "steps=1", "evaluation.before=false", "benchmark=story_math", "max_new_tokens=16"]
    warm.finish("train.py", log, *typed, "trainer.threads=1", f"hydra.run.dir={run}")
    (run / "results.json").write_text("{")
    told = warm.finish("train.py", log, *typed, "trainer.threads=1", f"hydra.run.dir={run}", status=2)
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"{run}/results.json was changed" in lines[0] and "Traceback" not in told
    assert (run / "results.json").read_text() == "{"


def test_nobody_else_parses_the_two_files():
    found = [REPOSITORY / "ngrpo", REPOSITORY / "analysis", REPOSITORY / "hydra_plugins", REPOSITORY / "experiments"]
    paths = [*REPOSITORY.glob("*.py"), *(path for room in found for path in room.rglob("*.py"))]
    calls = {
        (path.name, ast.unparse(node))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not [call for call in calls if "json.load" in call[1] and re.search(r"(run|results)\.json", call[1])]
