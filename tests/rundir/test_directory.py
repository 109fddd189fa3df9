"""The run directory: whole files or none, text that comes back unchanged, one process and one run in a directory."""

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ngrpo
from ngrpo.rundir import files, provenance, schema
from ngrpo.rundir.directory import ForeignRun, RunDirectory
from ngrpo.rundir.files import write_atomically
from ngrpo.rundir.lock import RunLocked
from ngrpo.rundir.recorder import Recorder, write_samples
from ngrpo.rundir.schema import (
    SAMPLE_TYPES,
    Unreadable,
    config_hash,
    eval_samples,
    read_results,
    read_run,
    run_directory,
)

CONFIG = {
    "seed": 3,
    "mix_rate": 0.1,
    "model": {"_target_": "ngrpo.models.tiny", "path": None},
    "engine": {"_target_": "ngrpo.rollout.engines.transformers.TransformersEngine"},
    "trainer": {"precision": "bf16", "devices": 1, "accelerator": "cpu", "strategy": "auto", "threads": 2},
    "evaluation": {"n": 32, "benchmarks": ["easy", "hard"]},
    "logger": None,
    "fresh": False,
}
HASH = config_hash(CONFIG)
CHOICES = {"exploration": "neighbor_mix", "algorithm": "grpo", "task": "story_math", "experiment": None}
PARTS = ".*.part"
traps = [
    "None", "NA", "nan", "007", "1e5", "a\ud800b", "\x00", "\x1b[2J", "9" * 5000, "\ufeff", "'",
    "a\nb", "a\rb", "\r\n", ",", '"', '"",', " a ", "",
]  # fmt: skip
texts = st.text(st.characters(), max_size=40) | st.sampled_from(traps)


def repaired(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def python(code: str, **options) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(ngrpo.__file__).parents[1]), str(Path(__file__).parent)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, env={**os.environ, "PYTHONPATH": path}, **pipes, **options
    )


def run_python(code: str) -> str:
    process = python(code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# ---- files: whole or not at all


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def half(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert contents(tmp_path) == {"a.json": b"old"}
    with pytest.raises(TypeError, match=r"\$\.a\[1\] is a set"):
        files.write_json({"a": [1, {2}]}, path)
    with pytest.raises(TypeError, match="list"):
        files.write_csv([{"a": [1]}], path)
    assert contents(tmp_path) == {"a.json": b"old"}
    path.with_name("directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "directory", b"x")
    assert not list(tmp_path.glob(PARTS))


def test_files_are_made_where_they_belong_and_for_their_owner_to_change(tmp_path):
    previous = os.umask(0)
    try:
        write_atomically(tmp_path / "new" / ("long" * 60), b"x")
    finally:
        os.umask(previous)
    (path,) = (tmp_path / "new").iterdir()
    assert path.read_bytes() == b"x" and path.stat().st_mode & 0o777 == 0o644


def fill_the_disk(directory: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    rows = [{"step": step, "text": "x" * 100} for step in range(500)]
    for name, write in {
        "a.csv": lambda path: files.write_csv(rows, path),
        "a.json": lambda path: files.write_json(rows, path),
        "a.parquet": lambda path: files.write_parquet([{"x": os.urandom(40_000)}], path),
    }.items():
        path = Path(directory, name)
        path.write_bytes(b"old")
        try:
            write(path)
        except OSError as error:
            message = str(error)
            assert str(path) in message and "bytes free" in message and "\n" not in message, message
        else:
            raise AssertionError(f"{name} was written in spite of the limit")
        assert path.read_bytes() == b"old"


def test_a_full_disk_is_told_in_one_line_and_costs_nothing(tmp_path):
    run_python(f"import test_directory; test_directory.fill_the_disk({str(tmp_path)!r})")
    assert sorted(contents(tmp_path)) == ["a.csv", "a.json", "a.parquet"]


def kill_before_operation(number: int) -> None:
    """Lets this process be killed by SIGKILL just before its `number`-th change of the file system."""
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_everywhere(prepare, act, check) -> None:
    provenance.git_commit, provenance.package_versions = lambda: None, dict  # slow, and they write nothing
    os.fsync = lambda fd: None  # slow too, and a kill takes nothing from what the system was given
    for number in range(1, 1000):
        with tempfile.TemporaryDirectory() as directory:
            prepare(Path(directory))
            if (child := os.fork()) == 0:
                kill_before_operation(number)
                act(Path(directory))
                os._exit(0)
            done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            check(Path(directory), done)
        if done:
            print(number - 1)
            return


def kill_writes() -> None:
    def check(directory: Path, done: bool) -> None:
        assert (directory / "a").read_bytes() in ([b"new"] if done else [b"old", b"new"])

    kill_everywhere(
        lambda d: write_atomically(d / "a", b"old"),
        lambda d: write_atomically(d / "a", b"new"),
        check,
    )


def kill_large_writes() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, generator = Path(directory, "a"), random.Random(0)
        write_atomically(path, b"0" * 4_000_000)
        for kill in range(10):
            if (child := os.fork()) == 0:
                while True:
                    for digit in b"0123456789":
                        write_atomically(path, bytes([digit]) * 4_000_000)
            time.sleep(generator.uniform(0.01, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            content = path.read_bytes()
            assert len(content) == 4_000_000 and len(set(content)) == 1, kill
        assert len(list(path.parent.glob(PARTS))) <= 10


def kill_rows() -> None:
    def prepare(directory: Path) -> None:
        with RunDirectory.open(directory / "run", CONFIG, hash=HASH) as run:
            Recorder(run).append_row("metrics", {"step": 1, "reward": 0.5})

    def act(directory: Path) -> None:
        with RunDirectory.open(directory / "run", CONFIG, hash=HASH) as run:
            Recorder(run).append_row("metrics", {"step": 2, "reward": 0.25, "kl": 0.1})
            Recorder(run).result("easy", 2, {"x": 1})
            run.finish()

    def check(directory: Path, done: bool) -> None:
        with RunDirectory.open(directory / "run", CONFIG, hash=HASH) as run:
            assert run.status == "finished" if done else run.status in ("running", "finished")
            steps = [row["step"] for row in files.read_csv(run.path / "metrics.csv")]
            assert steps in (["1"], ["1", "2"]) and (run.status != "finished" or len(steps) == 2)
            assert read_results(run.path) in ({}, {"easy": {"2": {"x": 1}}})
            assert not list(run.path.rglob(PARTS))

    kill_everywhere(prepare, act, check)


def kill_fresh() -> None:
    def prepare(directory: Path) -> None:
        with RunDirectory.open(directory / "run", CONFIG, hash=HASH) as run:
            for name in ("checkpoints/a", "checkpoints/b", "results.json", "metrics.csv"):
                write_atomically(run.path / name, b"old")
            run.finish()

    def act(directory: Path) -> None:
        RunDirectory.open(directory / "run", CONFIG, hash=HASH, fresh=True).close()

    def check(directory: Path, done: bool) -> None:
        with RunDirectory.open(directory / "run", CONFIG, hash=HASH) as run:
            left = {path for path in contents(run.path) if path not in ("run.json", ".lock")}
            whole = {"checkpoints/a", "checkpoints/b", "results.json", "metrics.csv"}
            assert left == (whole if run.status == "finished" else set()), (run.status, left)
            assert run.status == "running" if done else True

    kill_everywhere(prepare, act, check)


def test_a_kill_before_any_operation_leaves_a_directory_that_can_be_used():
    operations = run_python(
        "from test_directory import *; kill_large_writes(), kill_writes(), kill_rows(), kill_fresh()"
    ).split()
    assert [int(number) >= least for number, least in zip(operations, (2, 10, 10), strict=True)] == [True] * 3


# ---- text and numbers come back


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_csv_gives_every_text_back(cells):
    import pandas

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.csv")
        files.write_csv([{"a": a, "b,\n": b} for a, b in cells], path)
        expected = [(repaired(a), repaired(b)) for a, b in cells]
        assert [tuple(row.values()) for row in files.read_csv(path)] == expected
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
        assert list(frame.itertuples(index=False, name=None)) == expected
        assert list(frame.columns) == ["a", "b,\n"]


@settings(max_examples=100, deadline=None)
@given(st.lists(texts | st.none(), min_size=1, max_size=5))
def test_parquet_gives_every_text_back(cells):
    import pandas

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.parquet")
        expected = [None if cell is None else repaired(cell) for cell in cells]
        files.write_parquet([{"a": cell} for cell in cells], path)
        found = pandas.read_parquet(path)["a"].astype(object)
        assert [None if pandas.isna(cell) else cell for cell in found] == expected


@settings(max_examples=100, deadline=None)
@given(st.floats(), st.integers(), texts)
def test_json_is_strict_and_gives_every_number_and_text_back(number, whole, text):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.json")
        given = {text: [text, True, None, (1, 2)]}  # a text may be any name, also one of those beside it
        content = {"number": number, "whole": whole, "given": given, "numpy": np.float32(0.5)}
        files.write_json(content | {"array": np.arange(3), "path": Path("a")}, path)
        found = json.loads(path.read_text("utf-8"), parse_constant=lambda constant: pytest.fail(constant))
    assert found["number"] == (number if math.isfinite(number) else None) and found["whole"] == whole
    assert found["given"] == {repaired(text): [repaired(text), True, None, [1, 2]]}
    assert (found["numpy"], found["array"], found["path"]) == (0.5, [0, 1, 2], "a")


def test_csv_numbers_keep_every_digit(tmp_path):
    numbers = [0.1, 1 / 3, 1e-300, -0.0, 2**53, np.float64(2 / 3), np.float32(0.1), np.int64(7), math.inf, math.nan]
    files.write_csv([{"x": number} for number in numbers], tmp_path / "a.csv")
    found = [float(row["x"]) for row in files.read_csv(tmp_path / "a.csv")]
    np.testing.assert_array_equal(found, [float(number) for number in numbers])
    assert math.copysign(1, found[3]) == -1
    files.write_csv([{"x": None}, {"x": True}, {"y": "b"}], tmp_path / "a.csv")
    assert [list(row.values()) for row in files.read_csv(tmp_path / "a.csv")] == [["", ""], ["true", ""], ["", "b"]]
    files.write_csv([{"x": None}, {"x": None}], tmp_path / "a.csv")
    assert len(files.read_csv(tmp_path / "a.csv")) == 2 and files.read_csv(tmp_path / "missing.csv") == []


def sample(**cells):
    row = dict.fromkeys(SAMPLE_TYPES) | {"outcome": "wrong", "token_ids": [1, 2], "step": 4, "reward": 0.0}
    return row | cells


def test_sample_files_have_the_same_columns_and_types_whatever_the_rows_hold(tmp_path):
    import pyarrow.parquet

    full = sample(completion='a\ud800"\n', problem_id=7, extracted="5", logprob_sum=-1.5, outcome="correct")
    for name, rows in {"empty": [], "full": [full], "bare": [sample()]}.items():
        write_samples(iter(rows), eval_samples(tmp_path, name, 4))
    schemas = [pyarrow.parquet.read_schema(path) for path in (tmp_path / "samples" / "eval").iterdir()]
    assert schemas[0] == schemas[1] == schemas[2] and schemas[0].names == list(SAMPLE_TYPES)
    read = pyarrow.parquet.read_table(tmp_path / "samples" / "eval" / "full-4.parquet").to_pylist()
    assert read == [full | {"completion": 'a\ufffd"\n', "problem_id": "7"}]
    for wrong, words in (({"color": 1}, "color"), ({"outcome": "maybe"}, "maybe")):
        with pytest.raises(ValueError, match=words):
            write_samples([sample(**wrong)], tmp_path / "x.parquet")


# ---- what a run is


def leaves(tree, above=()):
    for key, value in tree.items():
        yield from leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]


def changed(tree, path, value):
    head, *rest = path
    return {**tree, head: changed(tree.get(head, {}), rest, value) if rest else value}


IGNORED = [
    ("logger",), ("fresh",), ("hydra", "run", "dir"), ("sweep", "n_trials"), ("schema", "seed"), ("paths", "data"),
    ("checkpoints", "keep"),
    ("trainer", "devices"), ("trainer", "accelerator"), ("trainer", "strategy"), ("trainer", "threads"),
    ("model", "path"), ("engine", "kv_cache_gib"), ("engine_correction",),
]  # fmt: skip


@pytest.mark.parametrize("path", IGNORED)
def test_where_and_how_a_run_is_watched_is_no_part_of_it(path):
    assert config_hash(changed(CONFIG, path, "other")) == HASH


def test_the_precision_of_an_engine_and_a_correction_are_a_part_of_it_and_no_correction_is_none():
    plain = {"correction": "none", "correction_level": "token", "correction_cap": 2.0}
    algorithm = CONFIG.get("algorithm", {})

    def of(**changes):
        return config_hash({**CONFIG, "algorithm": {**algorithm, **plain, **changes}})

    assert of() == of(correction_cap=3.0) == config_hash({**CONFIG, "algorithm": algorithm}), "as before there were any"
    assert len({HASH, of(correction="tis"), of(correction="tis", correction_cap=3.0), of(correction="mis")}) == 4
    assert config_hash(changed(CONFIG, ("engine", "dtype"), "bfloat16")) != HASH
    assert config_hash(changed(CONFIG, ("engine", "options"), {"quantization": "fp8"})) != HASH
    for nothing in ({}, {"quantization": None}):
        assert config_hash(changed(CONFIG, ("engine", "options"), nothing)) == HASH


@pytest.mark.parametrize("name", ["control", "reweight", "match_norm"])
def test_what_an_algorithm_may_have_is_a_part_of_it_only_where_it_has_it(name):
    """So that runs which were begun before there was such a thing go on."""
    algorithm = CONFIG.get("algorithm", {})
    assert config_hash({**CONFIG, "algorithm": {**algorithm, name: None}}) == config_hash(
        {**CONFIG, "algorithm": algorithm}
    )
    assert config_hash({**CONFIG, "algorithm": {**algorithm, name: "grpo"}}) != HASH


def test_everything_else_is_part_of_it(monkeypatch):
    identity = [path for path in leaves(CONFIG) if path not in IGNORED]
    hashes = {config_hash(changed(CONFIG, path, "other")) for path in [*identity, ("trainer", "new"), ("new",)]}
    hashes |= {config_hash(CONFIG, {"story_math": version}) for version in ("v1", "v2")} | {HASH}
    hashes |= {config_hash(CONFIG, {"model": fingerprint}) for fingerprint in ("0a", "0b")}
    monkeypatch.setattr(schema, "RESULTS_VERSION", schema.RESULTS_VERSION + 1)
    assert len(hashes | {config_hash(CONFIG)}) == len(identity) + 8 and ("engine", "_target_") in identity
    assert re.fullmatch("[0-9a-f]{64}", HASH)


def test_the_version_of_the_package_is_no_part_of_it():
    code = "import ngrpo; ngrpo.__version__ = '99'\nfrom ngrpo.rundir import provenance, schema\n"
    code += f"print(provenance.package_versions()['ngrpo'], schema.config_hash({CONFIG!r}))"
    assert run_python(code).split() == ["99", HASH]


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), trees, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(tree):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert config_hash(turned(tree)) == config_hash(tree)


def test_a_number_is_the_same_however_it_is_written():
    written = [{"temperature": value} for value in (1, 1.0, np.float32(1))]
    assert len({config_hash(config) for config in written}) == 1
    assert len({config_hash({"x": value}) for value in (1, True, "1", 1.5, None, 0, False, [1], {"1": 1})}) == 9


def test_a_run_is_named_after_its_choices():
    short = HASH[:8]
    assert run_directory(CONFIG, CHOICES) == f"outputs/story_math/neighbor_mix-grpo-s3-{short}"
    for none in ("null", ""):
        assert run_directory(CONFIG, CHOICES | {"experiment": none}) == run_directory(CONFIG, CHOICES)
    paper = run_directory(CONFIG, CHOICES | {"experiment": "paper/stht", "task": None})
    assert paper == f"outputs/paper-stht/neighbor_mix-grpo-s3-{short}"
    assert run_directory(CONFIG, CHOICES, {"story_math": "v2"}) != run_directory(CONFIG, CHOICES)
    for missing in ("exploration", "algorithm", "task"):
        with pytest.raises(ValueError, match="named after"):
            run_directory(CONFIG, CHOICES | {missing: None})


@settings(max_examples=200, deadline=None)
@given(texts | st.sampled_from(["..", ".", "../x", "/etc/x", "~", "~root", "a/../../b", "a\x00", ".hydra", "x" * 101]))
def test_no_name_leads_out_of_the_directory(name):
    root = Path("/runs/a")
    try:
        path = eval_samples(root, name, 3)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert path.resolve().parent == root / "samples" / "eval" and path.name == f"{name}-3.parquet"
    try:
        inside = run_directory(CONFIG, CHOICES | {"task": name, "exploration": name})
    except ValueError:
        return
    assert len(Path(os.path.normpath(inside)).parts) == 3 and inside.startswith("outputs/")


# ---- the life of a run


def test_a_run_starts_goes_on_and_ends(tmp_path):
    info = {"threads": 2, "devices": 1, "batching": (512, 8), "device_seconds": 1.5}
    with RunDirectory.open(tmp_path / "a" / "b", CONFIG, hash=HASH, info=info, versions={"story_math": "v1"}) as run:
        assert run.status is None
        record = json.loads((run.path / "run.json").read_text())
        assert record["status"] == "running" and record["config_hash"] == HASH and record["seed"] == 3
        assert record["config"] == schema.recorded(CONFIG) and record["data"] == {"story_math": "v1"}
        assert schema.identity(record["config"]) == schema.identity(CONFIG)
        assert (record["threads"], record["batching"], record["device_seconds"]) == (2, [512, 8], 1.5)
        assert (record["kind"], record["devices"], record["results_version"]) == ("run", 1, schema.RESULTS_VERSION)
        assert record["hardware"]["cores"] >= 1
        assert {"python", "ngrpo", "torch", "numpy"} <= record["versions"].keys()
        time.sleep(0.05)
    with RunDirectory.open(run.path, CONFIG, hash=HASH, info=info | {"threads": 4}) as run:
        assert run.status == "running" and run.record["wall_seconds"] >= 0.05
        assert (run.record["resumed"], run.record["earlier"]) == (1, [{"threads": 2}])
        run.save(peak_memory=3)
        time.sleep(0.05)
        run.finish()
    record = json.loads((run.path / "run.json").read_text())
    assert record["status"] == run.status == "finished" and record["wall_seconds"] >= 0.1
    assert record["peak_memory"] == 3 and record["created"] <= record["updated"] <= record["finished"]
    assert record["created"].endswith("+00:00")


def test_a_run_that_goes_on_elsewhere_says_so_in_one_note_and_keeps_what_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(provenance, "PROC", tmp_path / "proc")

    def open_with(**info):
        with RunDirectory.open(tmp_path / "run", CONFIG, hash=HASH, info=info) as run:
            return run.record["earlier"], capsys.readouterr().out.splitlines()

    assert open_with(threads=2, devices=1) == ([], [])
    earlier, (note,) = open_with(threads=4, devices=1)
    assert earlier == [{"threads": 2}] and note.startswith("note: continued with threads=4, which was 2: ")
    assert "devices" not in note
    assert open_with(threads=4, devices=1) == ([{"threads": 2}], [])
    gpu = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:01:00.0" / "information"
    gpu.parent.mkdir(parents=True)
    gpu.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 74\n")
    earlier, (note,) = open_with(threads=4, devices=2)
    assert earlier[0] == {"threads": 2} and earlier[1]["devices"] == 1 and earlier[1]["hardware"]["gpus"] == []
    assert "devices=2, which was 1" in note and "gpus=['NVIDIA H200'], which was none" in note and "threads" not in note
    assert read_run(tmp_path / "run").content["earlier"] == earlier


def test_opening_a_finished_run_changes_no_file(tmp_path):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:
        Recorder(run).append_row("metrics", {"step": 1})
        run.finish()
    before = {path: (data, (tmp_path / path).stat().st_mtime_ns) for path, data in contents(tmp_path).items()}
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH, info={"threads": 9}) as run:
        assert run.status == "finished"
    after = {path: (data, (tmp_path / path).stat().st_mtime_ns) for path, data in contents(tmp_path).items()}
    del before[".lock"], after[".lock"]
    assert after == before


def test_an_error_is_noted_and_an_interruption_is_not_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), RunDirectory.open(tmp_path, CONFIG, hash=HASH):
        _ = 1 / 0
    assert json.loads((tmp_path / "run.json").read_text())["reason"] == "ZeroDivisionError: division by zero"
    with pytest.raises(KeyboardInterrupt), RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:
        assert run.status == "failed"
        raise KeyboardInterrupt
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:
        assert run.status == "interrupted" and run.record["reason"] is None and run.record["resumed"] == 2


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH, versions={"story_math": "v1"}):
        pass
    other = changed(changed(CONFIG, ["mix_rate"], 0.2), ["model", "path"], "x") | {"new": 1}
    before = contents(tmp_path)
    with pytest.raises(ForeignRun) as error:
        RunDirectory.open(tmp_path, other, hash=config_hash(other), versions={"story_math": "v2"})
    message = str(error.value)
    for words in ("mix_rate=0.1 there, 0.2 here", 'model.path=null there, "x" here', "new=absent there, 1 here",
                  'data.story_math="v1" there, "v2" here', "fresh=true", "hydra.run.dir=", str(tmp_path)):  # fmt: skip
        assert words in message
    assert "\n" not in message and "seed" not in message and contents(tmp_path) == before
    many = CONFIG | {f"key{i}": i for i in range(20)}
    with pytest.raises(ForeignRun, match="and 14 more"):
        RunDirectory.open(tmp_path, many, hash=config_hash(many), versions={"story_math": "v1"})
    with RunDirectory.open(tmp_path, other, hash=config_hash(other), fresh=True) as run:
        assert run.status is None and run.record["config"]["mix_rate"] == 0.2


def test_fresh_empties_a_run_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    path = tmp_path / "run"
    with RunDirectory.open(path, CONFIG, hash=HASH) as run:
        Recorder(run).append_row("metrics", {"step": 1})
        write_atomically(path / "checkpoints" / "a.pt", b"x")
        write_atomically(path / ".hydra" / "config.yaml", b"x")
        (path / "hf").symlink_to(outside)
    with RunDirectory.open(path, CONFIG, hash=HASH, fresh=True) as run:
        assert run.status is None and sorted(contents(path)) == [".hydra/config.yaml", ".lock", "run.json"]
    with pytest.raises(ForeignRun, match="precious"):
        RunDirectory.open(outside, CONFIG, hash=HASH, fresh=True)
    assert contents(outside) == {"precious": b"x"}


def test_only_an_empty_directory_or_a_run_is_taken(tmp_path):
    (tmp_path / "notes.part").write_text("mine")
    with pytest.raises(ForeignRun, match=r"notes\.part"):
        RunDirectory.open(tmp_path, CONFIG, hash=HASH)
    assert contents(tmp_path) == {"notes.part": b"mine"}
    begun = tmp_path / "begun"  # hydra has been there, and a run that was killed before it wrote anything
    write_atomically(begun / ".hydra" / "config.yaml", b"x")
    (begun / ".lock").touch()
    (begun / f".run.json.{'0' * 32}.part").touch()
    with RunDirectory.open(begun, CONFIG, hash=HASH) as run:
        assert run.status is None and not list(begun.glob(PARTS))
    (begun / "run.json").write_text('{"status": "fini')
    with pytest.raises(Unreadable, match=r"damaged.*fresh=true"):
        RunDirectory.open(begun, CONFIG, hash=HASH)
    assert RunDirectory.open(begun, CONFIG, hash=HASH, fresh=True).status is None


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"cannot be written.*hydra\.run\.dir=") as error:
        RunDirectory.open(tmp_path / "file" / "run", CONFIG, hash=HASH)
    assert "\n" not in str(error.value)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"closed/run cannot be written"):
            RunDirectory.open(closed / "run", CONFIG, hash=HASH)
    finally:
        if root:
            os.seteuid(0)


# ---- one process at a time

OPEN = """
import os, sys, time
from ngrpo.rundir import directory, lock
def take(): return directory.RunDirectory.open({!r}, {!r}, hash={!r})
"""


def test_a_second_process_is_refused_and_a_killed_one_is_no_obstacle(tmp_path):
    # A line in one write, because those of two processes mingle otherwise.
    told = "os.write(1, b'%d\\n' % child)"
    code = f"run = take(); child = os.fork(); {told}; child or time.sleep(60); sys.stdin.read()"
    holder = python(OPEN.format(str(tmp_path), CONFIG, HASH) + code)
    assert holder.stdout
    child = max(int(holder.stdout.readline()) for _ in range(2))  # both are past the fork
    try:
        with pytest.raises(RunLocked, match=f"{tmp_path} is in use by pid {holder.pid}:") as error:
            RunDirectory.open(tmp_path, CONFIG, hash=HASH)
        assert "\n" not in str(error.value)
        holder.kill()
        holder.wait()
        start = time.monotonic()
        with RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:  # though its forked child is still alive
            os.kill(child, 0)
            assert run.status == "running" and time.monotonic() - start < 2
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_of_many_that_start_together_one_gets_the_directory(tmp_path):
    code = (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: run = take(); print('mine', flush=True)\n"
        "except lock.RunLocked as error: print(error, flush=True)\n"
        "sys.stdin.read()"
    )
    racers = [python(OPEN.format(str(tmp_path), CONFIG, HASH) + code) for _ in range(4)]
    for racer in racers:
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = {racer.pid: racer.stdout.readline() for racer in racers if racer.stdout}
    for racer in racers:
        racer.communicate()
    (winner,) = [pid for pid, line in said.items() if line == "mine\n"]
    assert sum(f"in use by pid {winner}:" in line for line in said.values()) == 3


def test_a_directory_is_free_again_after_close_and_not_before(tmp_path):
    run = RunDirectory.open(tmp_path, CONFIG, hash=HASH)
    with pytest.raises(RunLocked, match=f"pid {os.getpid()}"):
        RunDirectory.open(tmp_path, CONFIG, hash=HASH)
    run.close()
    run.close()
    RunDirectory.open(tmp_path, CONFIG, hash=HASH).close()


# ---- rows and results


def row(step: int) -> dict:
    extra = {"eval/mean": step / 3} if step % 4 == 0 else {}
    late = step if step > 6 else None  # a column that is empty for the rows that a cut leaves
    return {
        "step": step,
        "late": late,
        "reward": np.float32(step) / np.float32(7),
        "note": 'a,"\r\n' if step % 2 else "",
        **extra,
    }


def test_a_run_that_was_cut_off_writes_the_same_rows_as_one_that_was_not(tmp_path, capsys):
    import pandas

    for name, steps in {"whole": [], "cut": [5, 2, 0, 7]}.items():
        with RunDirectory.open(tmp_path / name, CONFIG, hash=HASH) as run:
            recorder, done, kept = Recorder(run), 0, {0: {}}
            for cut in [*steps, 10]:
                for step in range(done + 1, cut + 1):
                    recorder.append_row("metrics", row(step))
                    kept[step] = recorder.kept(step)
                done = max(0, cut - 2)
                if cut < 10:
                    recorder.restore(kept[done], done)
            if name == "cut":
                recorder.append_row("metrics", row(11))
                recorder.restore(kept[10], 10)
    assert "written again" not in capsys.readouterr().out  # nothing was lost
    whole, cut = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    frame = pandas.read_csv(tmp_path / "cut" / "metrics.csv")
    assert frame["step"].tolist() == list(range(1, 11)) and frame.columns[-1] == "eval/mean"
    assert frame["reward"].tolist() == [float(np.float32(step) / np.float32(7)) for step in range(1, 11)]


def test_each_step_has_one_row(tmp_path):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:
        recorder = Recorder(run)
        recorder.append_row("timings", {"step": 0, "seconds": 1.5})
        for wrong in ({"step": 0}, {"step": -1}, {"seconds": 1.0}, {"step": 1.5}):
            with pytest.raises(ValueError, match=r"one row per RL step"):
                recorder.append_row("timings", wrong)
        assert files.read_csv(tmp_path / "timings.csv") == [{"step": "0", "seconds": "1.5"}]


def test_results_stand_under_benchmark_and_step(tmp_path):
    with RunDirectory.open(tmp_path, CONFIG, hash=HASH) as run:
        assert read_results(tmp_path) == {}
        recorder = Recorder(run)
        for benchmark, step, value in (("hard", 10, 1.0), ("hard", 2, math.nan), ("easy", 2, 3.0), ("hard", 10, 4.0)):
            recorder.result(benchmark, step, {"value": value})
        assert read_results(tmp_path) == {
            "hard": {"2": {"value": None}, "10": {"value": 4.0}},
            "easy": {"2": {"value": 3.0}},
        }
        assert list(read_results(tmp_path)["hard"]) == ["2", "10"]
        with pytest.raises(ValueError, match="cannot name a file"):
            recorder.result("../x", 1, {})


# ---- where it runs


def test_the_commit_is_that_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    file = tmp_path / "directory.py"
    file.write_text("x")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.git_commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a")
    assert provenance.git_commit() is None  # a repository around an installed package is someone else's
    git("add", ".")
    git("commit", "-q", "-m", "b")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    file.write_text("y")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize("module", ["schema", "directory"])
def test_the_module_is_light(module):
    heavy = "{'torch', 'pandas', 'pyarrow', 'hydra', 'numpy', 'lightning'}"
    assert run_python(f"import sys, ngrpo.rundir.{module}; print({heavy} & set(sys.modules))").strip() == "set()"


def test_the_sample_columns_are_those_of_the_contract():
    assert ", ".join(SAMPLE_TYPES) == (
        "run, benchmark, problem_id, sample_index, prompt, completion, token_ids, n_tokens, finish_reason, gold, "
        "extracted, solution_path, outcome, reward, exploration, algorithm, step, seed, logprob_sum, entropy_mean, "
        "explored_steps"
    )


@pytest.mark.parametrize(
    ("asked", "told", "threads"), [(3, "1", 3), (None, "5", 5), (None, "many", None), (None, "", None)]
)
def test_threads_are_as_many_as_were_asked_for_else_as_the_environment_says(monkeypatch, asked, told, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert provenance.threads(asked) == (threads or provenance.cores())
