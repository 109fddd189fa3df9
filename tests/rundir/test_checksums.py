"""What a finished run left is what is read: any file that is another, gone or new is named, and nothing goes on by itself."""

import json
import shutil
from pathlib import Path

import pytest
import warm

from analysis.load import load
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.schema import Changed, check_files, checksum_of, read_run

TYPED = ["trainer=smoke", "trainer.threads=1", "steps=2", "evaluation.before=false", "benchmark=story_math",
         "max_new_tokens=16", "problems=4", "n=2"]  # fmt: skip
GOES_ON = "after the run had finished: trust_changed=true goes on"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "run"
    warm.finish("train.py", place.with_suffix(".log"), *TYPED, f"hydra.run.dir={place}")
    return place


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_file_is_listed_but_those_of_the_clock_and_of_a_resume(finished):
    there = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    listed = set(read_run(finished).content["checksums"])
    apart = {name for name in there if name.split("/")[0] in (".hydra", "checkpoints")} | {".lock", "run.json"}
    assert there - apart == listed and {"metrics.csv", "results.json", "hf/model.safetensors"} <= listed


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_every_file_of_a_finished_run_is_missed_by_name(copy, damage):
    record = read_run(copy)
    check_files(record)
    for name in record.content["checksums"]:
        path, good = copy / name, (copy / name).read_bytes()
        if damage == "flip":
            flip(path)
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(good[: len(good) // 2] if damage == "cut" else b"")
        with pytest.raises(Changed) as error:
            check_files(record)
        what = "is gone" if damage == "gone" else "was changed"
        assert str(error.value) == f"{path} {what} {GOES_ON}"
        path.write_bytes(good)
    check_files(record)


def test_a_file_that_loading_would_read_is_missed_too_and_a_note_is_not(copy):
    (copy / "hf" / "README.md").write_text("mine")
    (copy / "hf" / ".cache").mkdir()
    (copy / "hf" / ".cache" / "x.json").write_text("{}")
    check_files(read_run(copy))
    (copy / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(Changed, match=r"hf/chat_template\.jinja was added after"):
        check_files(read_run(copy))


def test_each_entry_point_names_the_file_and_goes_on_when_told_to(copy, tmp_path):
    for script, name, words in (
        ("train.py", "metrics.csv", [*TYPED, f"hydra.run.dir={copy}"]),
        ("report.py", "samples/eval/story_math-2.parquet", [f"runs={copy}", "kinds=[smoke]"]),
        ("evaluate.py", "hf/tokenizer_config.json", [f"run={copy}", "n=1", "problems=2", "benchmark=story_math",
                                                     f"hydra.run.dir={tmp_path / 'evaluation'}"]),
    ):  # fmt: skip
        path, log = copy / name, tmp_path / "log"
        good = path.read_bytes()
        path.write_bytes(good + b"\n")
        told = warm.finish(script, log, *words, status=2)
        assert told.splitlines()[-1] == f"error: {path} was changed {GOES_ON}", told
        assert "Traceback" not in told
        path.write_bytes(good)
        if script != "report.py":  # which has too little to say of a smoke run
            warm.finish(script, log, *words, "trust_changed=true")


def test_the_record_itself_is_sealed(copy):
    content = json.loads((copy / "run.json").read_text())
    assert content["checksum"] == checksum_of(content)
    for name, value in (("seed", content["seed"] + 1), ("wall_seconds", 1.0), ("mine", True)):
        (copy / "run.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(
            Changed, match=r"run\.json was changed or is damaged \(its checksum.*trust_changed=true goes on$"
        ):
            read_run(copy)
        assert read_run(copy, trust_changed=True).content[name] == value
    with pytest.raises(Changed):
        load([copy.parent], ["smoke"])


def test_without_checksums_nothing_is_checked_as_older_versions_wrote_none(copy):
    content = json.loads((copy / "run.json").read_text())
    del content["checksum"], content["checksums"]
    (copy / "run.json").write_text(json.dumps(content))
    flip(copy / "results.json")
    check_files(read_run(copy))


def test_a_lost_record_is_named(copy):
    (copy / "run.json").unlink()
    log = copy.parent / "log"
    told = warm.finish("train.py", log, *TYPED, f"hydra.run.dir={copy}", status=2)
    assert (
        f"{copy}/run.json is gone, which stood beside checkpoints" in told.splitlines()[-1] and "Traceback" not in told
    )


def test_a_record_that_is_written_again_and_again_stays_sealed(tmp_path):
    with RunDirectory.open(tmp_path, {"seed": 1}, hash="x") as run:
        run.save(mine=float("nan"))
    assert read_run(tmp_path).content["mine"] is None


@pytest.mark.parametrize("left", [None, '{"story_math": 3}', '{"story_math": {"0": {"pass": 1}}}', '{"a": {"x": {}}}'])
def test_results_that_are_none_are_a_line_even_when_trusted(copy, left):
    path = copy / "results.json"
    path.unlink() if left is None else path.write_text(left)
    told = warm.finish("train.py", copy.parent / "log", *TYPED, f"hydra.run.dir={copy}", "trust_changed=true", status=2)
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert f"{path}" in line and "Traceback" not in told


def test_a_grid_does_not_count_a_changed_run_as_finished(copy, tmp_path):
    with (copy / "metrics.csv").open("a") as file:
        file.write("x\n")
    log, place = tmp_path / "log", ["hydra.sweep.dir=" + str(copy.parent), "hydra.sweep.subdir=run"]
    told = warm.finish("train.py", log, "-m", *TYPED, "seed=0", *place, status=1)
    assert f"{copy}/metrics.csv was changed after the run had finished: trust_changed=true goes on" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["metrics.csv", "results.json", "samples/train/1.parquet"])
def test_a_directory_in_the_place_of_a_file_is_a_line(copy, name):
    content = json.loads((copy / "run.json").read_text()) | {"status": "running"}
    content.pop("checksums")
    (copy / "run.json").write_text(json.dumps(content | {"checksum": checksum_of(content)}))
    (copy / name).unlink()
    (copy / name).mkdir()
    log = copy.parent / "log"
    process = warm.start("train.py", log, *TYPED, f"hydra.run.dir={copy}")
    process.join(timeout=120)
    told = log.read_text()
    assert process.exitcode in (1, 2) and "Traceback" not in told, told
    assert sum(line.startswith("error: ") for line in told.splitlines()) == 1 and name.rpartition("/")[2] in told
