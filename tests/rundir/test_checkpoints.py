"""Checkpoints under kills, damage, full disks and hostile files: the newest whole one always loads, unchanged."""

import collections
import enum
import hashlib
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ngrpo
from ngrpo.rundir import checkpoints
from ngrpo.rundir.checkpoints import CheckpointError, newest, rng_state, save, set_rng_state


def state_of(step: int, version: int = 0, size: int = 50) -> dict:
    return {"step": step, "version": version, "weight": torch.full((size,), float(step + version / 2))}


def is_whole(state: dict, step: int) -> bool:
    return state["step"] == step and bool((state["weight"] == step + state["version"] / 2).all())


def newest_quietly(directory: Path) -> tuple[int, dict] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return newest(directory)


def run_story(story: str, directory: Path) -> str:
    path = os.pathsep.join([str(Path(ngrpo.__file__).parents[1]), str(Path(__file__).parent)])
    code = f"import test_checkpoints; test_checkpoints.{story}({str(directory)!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- what is saved comes back


def test_a_state_comes_back_bit_for_bit(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(7, 3)).square().mean().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "rng": rng_state(), "bf16": torch.tensor([1 / 3, float("nan")], dtype=torch.bfloat16),
        "plain": [None, True, -1.5, float("inf"), "\ud800 text", b"\x00\xff", (1, ["a"]), {3: {}}, torch.float16],
    }  # fmt: skip
    path = save(tmp_path, 12, state)
    assert path == tmp_path / "step-00000012.pt"
    found = newest(tmp_path)
    assert found is not None and found[0] == 12 and found[1]["plain"] == state["plain"]
    assert torch.equal(found[1]["bf16"].view(torch.int16), state["bf16"].view(torch.int16))
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[1]["model"][name], tensor)
    other = torch.optim.AdamW(torch.nn.Linear(3, 5).parameters())
    other.load_state_dict(torch.optim.AdamW(torch.nn.Linear(3, 5).parameters()).state_dict())
    optimizer.load_state_dict(found[1]["optimizer"])
    schedule.load_state_dict(found[1]["schedule"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    data = path.read_bytes()
    assert manifest == {path.name: {"step": 12, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}


class Color(enum.IntEnum):
    RED = 1


class Tensor(torch.Tensor):
    pass


UNLOADABLE = {
    "numpy number": np.float64(1),
    "numpy array": np.zeros(2),
    "path": pathlib.Path("a"),
    "enum": Color.RED,
    "set": {1},
    "defaultdict": collections.defaultdict(int),
    "namedtuple": collections.namedtuple("Pair", "a b")(1, 2),
    "function": os.getcwd,
    "module": torch.nn.Linear(1, 1),
    "generator": np.random.default_rng(0),
    "tensor subclass": torch.zeros(2).as_subclass(Tensor),
}


@pytest.mark.parametrize("value", UNLOADABLE.values(), ids=UNLOADABLE.keys())
def test_a_state_that_would_not_load_is_refused_with_its_place(tmp_path, value):
    save(tmp_path, 1, state_of(1))
    with pytest.raises(CheckpointError, match=r"state\.a\[1\]\.b is a ") as error:
        save(tmp_path, 2, {"a": [0, {"b": value}]})
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"state\.a has the key \(1, 2\)"):
        save(tmp_path, 2, {"a": {(1, 2): 0}})
    found = newest(tmp_path)
    assert found is not None and found[0] == 1 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "url", ["http://x/y", "https://x", "s3://bucket/a", "hf://a/b", "file:/tmp/x", Path("http://x/y")]
)
def test_urls_are_refused(url):
    for call in (lambda: newest(url), lambda: save(url, 1, {})):
        with pytest.raises(ValueError, match="local directories"):
            call()


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (10**8, 2), (1, 0)])
def test_steps_and_numbers_out_of_range_are_refused(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"step={step}, keep={keep}"):
        save(tmp_path, step, {}, keep)


# ---- which ones there are


def test_nothing_saved_is_none(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "missing") is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_by_step_and_not_by_date(tmp_path, keep):
    for step in range(1, 8):
        path = save(tmp_path, step, state_of(step), keep)
        os.utime(path, (2e9 - step, 2e9 - step))  # a clock that runs backwards
        names = {f"step-{s:08d}.pt" for s in range(max(1, step - keep + 1), step + 1)}
        assert {p.name for p in tmp_path.iterdir()} == names | {"manifest.json"}
        found = newest(tmp_path)
        assert found is not None and found[0] == step and is_whole(found[1], step)


def test_a_step_done_again_replaces_what_came_of_it_and_after_it(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, state_of(step), keep=4)
    save(tmp_path, 2, state_of(2, version=1), keep=4)
    found = newest(tmp_path)
    assert found is not None and found[0] == 2 and found[1]["version"] == 1 and is_whole(found[1], 2)
    assert {p.name for p in tmp_path.glob("*.pt")} == {"step-00000001.pt", "step-00000002.pt"}


def test_what_a_kill_left_behind_is_ignored_and_swept_by_the_next_save(tmp_path):
    save(tmp_path, 1, state_of(1))
    shutil.copy(tmp_path / "step-00000001.pt", tmp_path / "step-00000009.pt")
    (tmp_path / f".step-00000009.pt.{'0' * 32}.part").write_bytes(b"x" * 100)
    (tmp_path / "notes.txt").write_text("mine")
    found = newest(tmp_path)
    assert found is not None and found[0] == 1
    save(tmp_path, 2, state_of(2))
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "notes.txt", "step-00000001.pt", "step-00000002.pt"]


# ---- damage


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    save(directory, 1, state_of(1))
    save(directory, 2, state_of(2))
    return directory


@pytest.fixture
def two(pair, tmp_path) -> Path:
    return Path(shutil.copytree(pair, tmp_path / "two"))


def falls_back(directory: Path) -> bool:
    with pytest.warns(RuntimeWarning, match=r"passed over step-00000002\.pt: .*; continuing from step-00000001\.pt"):
        found = newest(directory)
    return found is not None and found[0] == 1 and is_whole(found[1], 1)


def test_a_flipped_bit_anywhere_is_detected(two):
    path, generator = two / "step-00000002.pt", random.Random(0)
    good = path.read_bytes()
    for offset in [0, len(good) - 1, *(generator.randrange(len(good)) for _ in range(100))]:
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1 << generator.randrange(8)]) + good[offset + 1 :])
        assert falls_back(two)


def test_a_file_cut_short_or_gone_or_no_file_falls_back(two):
    path = two / "step-00000002.pt"
    good = path.read_bytes()
    for length in range(0, len(good), len(good) // 20):
        path.write_bytes(good[:length])
        assert falls_back(two)
    path.write_bytes(good + b"\0")
    assert falls_back(two)
    path.unlink()
    assert falls_back(two)
    path.mkdir()
    assert falls_back(two)


def test_when_none_is_usable_one_line_says_so(two):
    for path in two.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"no usable checkpoint \(step-00000002.*step-00000001.*fresh=true"
    ) as error:
        newest(two)
    assert "\n" not in str(error.value)
    (two / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"manifest.json is gone, and no checkpoint beside it is whole: fresh=true"
    ):
        newest(two)
    with pytest.raises(CheckpointError, match="is gone"):
        save(two, 3, state_of(3))


def test_a_damaged_manifest_costs_nothing(two):
    path = two / "manifest.json"
    good = path.read_bytes()
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        found = newest_quietly(two)
        assert found is not None and found[0] == 2 and is_whole(found[1], 2), offset
    forgeries = [
        '{"../x.pt": {"step": 1, "sha256": ""}}',
        '{"step-00000002.pt": {"step": 3, "sha256": ""}}',
        '{"step-00000002.pt": 1}',
        "[]",
        "3",
        "[" * 100_000,
    ]
    for forged in forgeries:
        path.write_text(forged)
        with pytest.warns(
            RuntimeWarning, match=r"manifest.json is damaged: made anew from step-00000001.pt, step-00000002"
        ):
            found = newest(two)
        assert found is not None and found[0] == 2
    path.unlink()
    (two / "step-00000002.pt").write_bytes((two / "step-00000002.pt").read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"manifest.json is gone: made anew from step-00000001.pt$"):
        found = newest(two)
    assert found is not None and found[0] == 1
    with pytest.warns(RuntimeWarning, match="is gone"):
        save(two, 3, state_of(3))
    assert sorted(json.loads(path.read_text())) == ["step-00000001.pt", "step-00000003.pt"]


def test_the_checksum_in_a_file_is_that_of_all_before_it(two):
    content = (two / "step-00000002.pt").read_bytes()
    own = zipfile.ZipFile(two / "step-00000002.pt").comment
    assert own == b"sha256:" + hashlib.sha256(content[: -len(own) - 2]).hexdigest().encode()
    manifest = json.loads((two / "manifest.json").read_text())
    assert manifest["step-00000002.pt"] == {
        "step": 2,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_though_its_checksum_is_right(two, tmp_path, form):
    path, canary = two / "step-00000002.pt", tmp_path / "canary"
    payload = {"step": 2, "weight": Evil(canary)}
    torch.save(payload, path) if form == "torch" else path.write_bytes(pickle.dumps(payload))
    manifest = json.loads((two / "manifest.json").read_text())
    manifest[path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (two / "manifest.json").write_text(json.dumps(manifest))
    assert falls_back(two) and not canary.exists()
    (two / "step-00000001.pt").unlink()
    with pytest.raises(CheckpointError, match="refused by torch") as error:
        newest(two)
    assert "\n" not in str(error.value) and not canary.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert canary.exists()  # the payload is a live one


# ---- kills and a full disk


def kill_at_random(directory: str) -> None:
    """Back-to-back saves of 20 MB, each step saved twice, killed at 10 random moments."""
    folder, generator, safe = Path(directory), random.Random(1), Path(directory, "safe")
    torch.set_num_threads(1)
    last = 0
    for _ in range(10):
        safe.unlink(missing_ok=True)
        if (child := os.fork()) == 0:
            for step in range(last + 1, last + 1000):
                for version in (0, 1):
                    save(folder, step, state_of(step, version, 5_000_000))
                    safe.write_text(f"{step} {version}")
        while not safe.exists():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest_quietly(folder)
        assert found is not None and is_whole(found[1], found[0])
        done = [int(number) for number in safe.read_text().split()]
        assert [found[0], found[1]["version"]] >= done, "a save that had returned was lost"
        last = found[0]
        for path in folder.glob("step-*.pt"):
            torch.load(path, weights_only=True)
    assert last >= 10
    save(folder, last + 1, state_of(last + 1))
    assert not list(folder.glob(".*.part")) and len(list(folder.glob("*.pt"))) == 2


def kill_before_operation(number: int) -> None:
    """Lets this process be killed by SIGKILL just before its `number`-th change of the file system."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes or event in ("os.rename", "os.remove", "os.mkdir"):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def damaged_newest(directory: Path) -> None:
    save(directory, 1, state_of(1))
    path = save(directory, 2, state_of(2))
    path.write_bytes(path.read_bytes()[:-5])


# name: what is there, the step that is saved, what may be found after a kill
STORIES = {
    "first": (lambda d: None, 1, {None, (1, 1)}),
    "next": (lambda d: [save(d, s, state_of(s)) for s in (1, 2)], 3, {(2, 0), (3, 1)}),
    "again": (lambda d: [save(d, s, state_of(s)) for s in (1, 2)], 2, {(2, 0), (2, 1)}),
    "again, alone": (lambda d: save(d, 2, state_of(2)), 2, {(2, 0), (2, 1)}),
    "earlier": (lambda d: [save(d, s, state_of(s)) for s in (1, 3)], 2, {(3, 0), (2, 1)}),
    "damaged": (damaged_newest, 2, {(1, 0), (2, 1)}),
}


def kill_everywhere(directory: str) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # slow, and a kill takes nothing from what the system was given
    for name, (prepare, step, allowed) in STORIES.items():
        for number in range(1, 100):
            with tempfile.TemporaryDirectory(dir=directory) as inner:
                folder = Path(inner)
                prepare(folder)
                if (child := os.fork()) == 0:
                    kill_before_operation(number)
                    save(folder, step, state_of(step, version=1))
                    os._exit(0)
                done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                found = newest_quietly(folder)
                assert (found and (found[0], found[1]["version"])) in ({(step, 1)} if done else allowed), (name, number)
                assert found is None or is_whole(found[1], found[0])
                save(folder, 5, state_of(5))
                again = newest(folder)
                assert again is not None and again[0] == 5 and not list(folder.glob(".*.part"))
            if done:
                print(number - 1)
                break


def fill_the_disk(directory: str) -> None:
    """A save that does not fit, and the memory that one that does takes."""
    folder, large = Path(directory), state_of(2, size=25_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(folder / "large", 2, large)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    save(folder, 1, state_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))
    try:
        save(folder, 2, large)
    except OSError as error:
        message = str(error)
    else:
        raise AssertionError("100 MB were written in spite of the limit")
    assert "step-00000002.pt was not written" in message and "bytes free" in message and "\n" not in message, message
    found = newest(folder)
    assert (
        found is not None
        and found[0] == 1
        and sorted(os.listdir(folder)) == ["large", "manifest.json", "step-00000001.pt"]
    )
    save(folder, 2, state_of(2))


def test_kills_at_random_moments_of_large_saves_lose_nothing_that_was_saved(tmp_path):
    run_story("kill_at_random", tmp_path)


def test_a_kill_before_any_operation_leaves_the_last_checkpoint_or_the_new_one(tmp_path):
    operations = [int(line) for line in run_story("kill_everywhere", tmp_path).split()]
    assert len(operations) == len(STORIES) and min(operations) >= 4


def test_a_full_disk_keeps_the_old_checkpoint_and_a_save_takes_no_second_copy(tmp_path):
    megabytes = float(run_story("fill_the_disk", tmp_path))
    assert megabytes < 10  # of a state of 100 MB


# ---- generators


def draws() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]


def test_the_generators_go_on_where_they_were(tmp_path):
    draws()
    save(tmp_path, 1, {"rng": rng_state()})
    expected = [draws() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert draws() != expected[0]
    found = newest(tmp_path)
    assert found is not None
    set_rng_state(found[1]["rng"])
    assert [draws() for _ in range(3)] == expected
    set_rng_state(found[1]["rng"])
    assert [draws() for _ in range(3)] == expected


def test_cuda_generators_are_restored_where_there_are_any(monkeypatch):
    states = [torch.arange(16, dtype=torch.uint8) + device for device in range(2)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    saved = rng_state()
    restored = {}
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.update({device: state}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    set_rng_state(saved)
    assert restored[0] is states[0] and restored[1] is states[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    restored.clear()
    with pytest.warns(RuntimeWarning, match="2 CUDA generators, here are 1"):
        set_rng_state(saved)
    assert list(restored) == [0]


def test_the_source_loads_nothing_that_could_run():
    source = Path(checkpoints.__file__).read_text("utf-8")
    assert source.count("torch.load(") == 1 and "weights_only=True)" in source and "weights_only=False" not in source
