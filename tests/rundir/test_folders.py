"""Checkpoints that are folders, with what several processes have written in them, are as safe as those that are files."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from torch import arange

from ngrpo.rundir.checkpoints import CheckpointError, newest, save, unfinished


def write(folder: Path) -> dict[str, Any]:
    """What ranks write: two files of parts."""
    found = {}
    for name in ("__0_0.distcp", "__1_0.distcp"):
        content = f"{folder.name} {name}".encode()
        (folder / name).write_bytes(content)
        found[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return found


def full(folder: Path) -> dict[str, Any]:
    """A disk that fills while a part is written."""
    (folder / "__0_0.distcp").write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.fixture
def saved(tmp_path) -> Path:
    """Steps 1 and 2 as folders."""
    for step in (1, 2):
        save(tmp_path, step, {"at": step, "waiting": arange(3)}, 2, write)
    return tmp_path


def step_of(directory: Path) -> int:
    found = newest(directory)
    assert found and found[1]["at"] == found[0] and Path(found[1]["folder"]).name == f"step-{found[0]:08d}"
    return found[0]


def test_the_newest_whole_folder_is_taken_and_as_many_stay_as_are_kept(saved):
    assert step_of(saved) == 2
    save(saved, 3, {"at": 3}, 2, write)
    assert step_of(saved) == 3 and sorted(path.name for path in saved.glob("step-*")) == [
        "step-00000002",
        "step-00000003",
    ]


@pytest.mark.parametrize("name", ["__1_0.distcp", "state.pt", "files.json"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_a_folder_with_a_damaged_file_is_passed_over(saved, name, spoil):
    spoil(saved / "step-00000002" / name)
    with pytest.warns(RuntimeWarning, match="step-00000002"):
        assert step_of(saved) == 1
    spoil(saved / "step-00000001" / name)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        newest(saved)


def test_a_lost_manifest_is_made_anew_from_folders(saved):
    (saved / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert step_of(saved) == 2


def test_a_save_that_fails_keeps_the_last_one_and_the_next_save_takes_its_remains_away(saved):
    with pytest.raises(OSError, match="No space"):
        save(saved, 3, {"at": 3}, 2, full)
    assert step_of(saved) == 2 and unfinished(saved, 3).exists()
    save(saved, 3, {"at": 3}, 2, write)
    assert step_of(saved) == 3 and not unfinished(saved, 3).exists()


def test_a_step_is_saved_again_as_a_folder_and_as_a_file(saved):
    save(saved, 2, {"at": 2, "again": True}, 2, write)
    found = newest(saved)
    assert found and found[1]["again"]
    save(saved, 2, {"at": 2, "whole": True}, 2)
    found = newest(saved)
    assert found and found[1]["whole"] and "folder" not in found[1]
    assert not (saved / "step-00000002").exists()
