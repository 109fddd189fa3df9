"""An unfinished run whose files lost something goes on without losing more, and says what was lost."""

import itertools

import pyarrow.parquet
import pytest

from ngrpo.evaluation.benchmarks import discard_damaged, partial_file
from ngrpo.rundir import files
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.recorder import GROWING, Recorder, write_samples
from ngrpo.rundir.schema import SAMPLE_TYPES, STEP_SAMPLES, TRAIN_SAMPLES, Changed, Unreadable, eval_samples, read_run

AT = 30  # in the first row of a CSV, the first page of a parquet file, and a key of the results
DAMAGE = {
    "gone": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flip": lambda content: content[:AT] + bytes([content[AT] ^ 1]) + content[AT + 1 :],
    "binary": lambda content: bytes(range(256)),
    "nonsense": lambda content: b"[1, 2]",
}


def sample_row(step: int, index: int = 0) -> dict:
    row = dict.fromkeys(SAMPLE_TYPES) | {"outcome": "wrong", "step": step, "sample_index": index, "problem_id": "p"}
    return row | {"token_ids": [1, 2]}


def work(recorder: Recorder, steps: range) -> None:
    """What a run writes in some RL steps."""
    for step in steps:
        for name in ("metrics", "timings"):
            recorder.append_row(name, {"step": step, "value": step / 7, **({"late": 1} if step > 2 else {})})
        write_samples([sample_row(step)], recorder.run.path / TRAIN_SAMPLES.format(step=step))
        rows = [{"step": one, "cosine": one / 3} for one in range(1, step + 1)]
        files.write_parquet(rows, recorder.run.path / STEP_SAMPLES)
        write_samples([sample_row(step)], eval_samples(recorder.run.path, "bench", step))
        recorder.result("bench", step, {"mean@n": {"value": step / 3}})


@pytest.fixture
def begun(tmp_path):
    with RunDirectory.open(tmp_path / "run", {"seed": 1}, hash="x") as run:
        recorder = Recorder(run)
        work(recorder, range(1, 4))
        yield recorder, recorder.kept(3)


@pytest.mark.parametrize(("name", "damage"), itertools.product(GROWING, DAMAGE))
def test_what_a_checkpoint_holds_is_written_again_and_told(begun, capsys, name, damage):
    recorder, kept = begun
    path = recorder.run.path / name
    good = path.read_bytes()
    work(recorder, range(4, 6))
    spoil = DAMAGE[damage]
    path.unlink() if spoil is None else path.write_bytes(spoil(path.read_bytes()))
    recorder.restore(kept, 3)
    assert path.read_bytes() == good
    told = [line for line in capsys.readouterr().out.splitlines() if str(path) in line]
    assert len(told) == 1 and "as the checkpoint of RL step 3 holds it" in told[0]


def test_later_rows_go_without_a_word(begun, capsys):
    recorder, kept = begun
    before = {name: (recorder.run.path / name).read_bytes() for name in GROWING}
    work(recorder, range(4, 6))
    recorder.restore(kept, 3)
    assert before == {name: (recorder.run.path / name).read_bytes() for name in GROWING}
    assert capsys.readouterr().out == ""
    recorder.restore({}, 0)  # no checkpoint: all of it is done again
    assert not any((recorder.run.path / name).exists() for name in GROWING)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["samples/train/2.parquet", "samples/eval/bench-1.parquet"])
def test_lost_samples_are_named_and_the_run_stops_unless_told_to_go_on(begun, capsys, name, damage):
    recorder, kept = begun
    path, spoil = recorder.run.path / name, DAMAGE[damage]
    path.unlink() if spoil is None else path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(Changed) as error:
        recorder.restore(kept, 3)
    what = "is gone" if spoil is None else "was changed"
    assert str(error.value).startswith(
        f"{path} {what}, and its samples cannot be drawn again: trust_changed=true goes on"
    )
    recorder.run.trust_changed = True
    recorder.restore(kept, 3)
    assert f"note: {path} {what}" in capsys.readouterr().out
    assert read_run(recorder.run.path).content["lost"] == [name]
    recorder.restore(recorder.kept(3), 3)  # from now on it is what it is
    assert "note: " not in capsys.readouterr().out


@pytest.mark.parametrize("damage", [*DAMAGE, "other rows", "other columns"])
def test_damaged_samples_of_an_evaluation_are_drawn_again(tmp_path, capsys, damage):
    target, plan = eval_samples(tmp_path, "bench", 3), [(0, 2), (2, 3)]
    for index, (start, end) in enumerate(plan):
        write_samples([sample_row(3, i) for i in range((end - start) * 4)], partial_file(target, index))
    discard_damaged(target, plan, 4)
    assert partial_file(target, 0).exists() and partial_file(target, 1).exists() and capsys.readouterr().out == ""
    path = partial_file(target, 1)
    if damage == "other rows":
        write_samples([sample_row(3)], path)
    elif damage == "other columns":
        files.write_parquet([{"a": 1}] * 4, path)
    elif (spoil := DAMAGE[damage]) is not None:
        path.write_bytes(spoil(path.read_bytes()))
    else:
        return
    discard_damaged(target, plan, 4)
    assert partial_file(target, 0).exists() and not path.exists()
    assert f"note: {path} is damaged; its samples are drawn again" in capsys.readouterr().out


def test_a_flipped_bit_in_any_page_is_missed(tmp_path):
    path = tmp_path / "x.parquet"
    write_samples([sample_row(3, i) for i in range(50)], path)
    good = path.read_bytes()
    pages = range(4, len(good) - pyarrow.parquet.read_metadata(path).serialized_size - 8)
    table, missed = files.read_table(path), 0
    for place in pages[::3]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        found = files.read_table(path)
        missed += found is not None and not found.equals(table)
    assert missed == 0


def test_a_flaw_that_parquet_does_not_see_is_seen_by_what_was_written(begun, capsys):
    recorder, _ = begun
    target = eval_samples(recorder.run.path, "bench", 3)
    digest = recorder.digest(target)
    assert digest == read_run(recorder.run.path).content["checksums"]["samples/eval/bench-3.parquet"]
    discard_damaged(target, [(0, 1)], 1, digest)
    assert target.exists()
    content = bytearray(target.read_bytes())
    content[content.index(b"parquet-cpp-arrow")] ^= 1  # who wrote it: nothing that is read
    target.write_bytes(content)
    discard_damaged(target, [(0, 1)], 1)
    assert target.exists()
    discard_damaged(target, [(0, 1)], 1, digest)
    assert not target.exists() and f"note: {target} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("own", [{"step": 2}, {"run": "another"}])
def test_a_checkpoint_of_another_step_or_run_is_refused_before_anything_is_written(begun, own):
    recorder, kept = begun
    work(recorder, range(4, 6))
    before = {path: path.read_bytes() for path in recorder.run.path.rglob("*.*") if path.is_file()}
    with pytest.raises(
        Unreadable, match=r"the one of RL step 3 is of RL step \d or another run: take it away, or fresh"
    ):
        recorder.restore({**kept, **own, "files": {}}, 3)
    assert before == {path: path.read_bytes() for path in recorder.run.path.rglob("*.*") if path.is_file()}


def test_a_refusal_for_lost_samples_writes_nothing(begun):
    recorder, kept = begun
    work(recorder, range(4, 6))
    (recorder.run.path / "samples/train/1.parquet").unlink()
    before = {name: (recorder.run.path / name).read_bytes() for name in GROWING}
    with pytest.raises(Changed):
        recorder.restore(kept, 3)
    assert before == {name: (recorder.run.path / name).read_bytes() for name in GROWING}


def test_an_older_checkpoint_is_refused_and_none_at_all_is_said(begun, capsys):
    recorder, _ = begun
    with pytest.raises(Unreadable, match=r"written by an older version: fresh=true"):
        recorder.restore(None, 3)
    recorder.restore({}, 0)
    assert "holds no checkpoint: its RL steps are done again from the first" in capsys.readouterr().out
