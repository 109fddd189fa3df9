"""Files of other tools: which column is taken as what, in which formats, and what is refused in one line."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm
from places import REPOSITORY

from analysis import foreign
from analysis.comparison import compare
from analysis.load import LoadError
from analysis.verdict import verdict

PROBLEMS = [f"What is {i} + {i}?" for i in range(6)]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rates(study, arm=None):
    """problem -> (n, c) of an arm, the first unless named."""
    part = study.counts[study.counts["arm"] == (arm or study.arms[0])]
    return {row.problem_id: (row.n, row.c) for row in part.itertuples()}


def grid(n=4, **cells):
    """n rows for each of PROBLEMS; cells are values or functions of problem and sample."""
    return [
        {key: cell(p, s) if callable(cell) else cell for key, cell in cells.items()}
        for p in range(len(PROBLEMS))
        for s in range(n)
    ]


def right(p, s):
    return (p + s) % 3 == 0


SOLVED = {p: sum(right(p, s) for s in range(4)) for p in range(6)}


@pytest.mark.parametrize(
    ("cells", "verdict", "problem"),
    [
        ({"prompt": lambda p, s: PROBLEMS[p], "label": lambda p, s: str(p % 2), "response": "x",
          "reward": lambda p, s: float(right(p, s))}, "reward", "prompt"),
        ({"input": lambda p, s: PROBLEMS[p], "output": "x", "label": "7", "reward": lambda p, s: right(p, s) * 2 - 1},
         "reward", "input"),
        ({"input": lambda p, s: PROBLEMS[p], "gts": "1", "output": "x", "score": lambda p, s: right(p, s) - 0.01 * s,
          "step": 5, "acc": right, "pred": "1"}, "acc", "input"),
        ({"question_id": lambda p, s: p, "label": lambda p, s: int(right(p, s))}, "label", "question_id"),
        ({"task_id": lambda p, s: f"HumanEval/{p}", "result": lambda p, s: "passed" if right(p, s) else "timed out"},
         "result", "task_id"),
        ({"step": 3, "prompt": lambda p, s: PROBLEMS[p], "completion": "x", "advantage": 0.1, "length_bonus": 0.2,
          "math_verify_fn": lambda p, s: float(right(p, s))}, "math_verify_fn", "prompt"),
        ({"doc_id": lambda p, s: p, "metrics": [["boxed"]], "boxed": lambda p, s: int(right(p, s)), "target": "1"},
         "boxed", "doc_id"),
    ],
    ids=["slime", "OpenRLHF", "verl", "NGRPO", "human-eval", "TRL", "lm-eval"],
)  # fmt: skip
def test_what_each_tool_writes_is_read_and_told(tmp_path, cells, verdict, problem):
    cells = {key: value[0] if isinstance(value, list) else value for key, value in cells.items()}
    study = foreign.load([lines(tmp_path / "made.jsonl", grid(**cells))])
    assert study.arms == ["made"] and [c for _, c in rates(study).values()] == list(SOLVED.values())
    assert f"verdict is {verdict}" in study.column_notes[0] and f"problem is {problem}" in study.column_notes[0]


def test_a_gold_answer_is_no_verdict_even_where_it_looks_like_one(tmp_path):
    answers = {"label": lambda p, s: str(p % 2), "prompt": lambda p, s: PROBLEMS[p], "response": "x"}
    with pytest.raises(LoadError, match="has no verdict column"):
        foreign.load([lines(tmp_path / "a.jsonl", grid(**answers))])
    numbers = {**answers, "label": lambda p, s: p % 2}
    path = lines(tmp_path / "c.jsonl", grid(**numbers))
    with pytest.raises(LoadError, match=r"the same in all samples of each problem.*columns\.verdict=label takes it"):
        foreign.load([path])
    assert set(rates(foreign.load([path], {"verdict": "label"})).values()) == {(4, 0), (4, 4)}
    with pytest.raises(LoadError, match=r"column score, row 2: '0\.5' is neither"):
        foreign.load([lines(tmp_path / "d.jsonl", grid(score=lambda p, s: s / 2, **numbers))])
    study = foreign.load(
        [lines(tmp_path / "b.jsonl", grid(correct_answer=lambda p, s: p % 2, passed=right, **answers))]
    )
    assert [c for _, c in rates(study).values()] == list(SOLVED.values())


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ({"acc": right, "acc_norm": lambda p, s: not right(p, s)}, ["acc", "acc_norm"]),
        ({"accuracy_reward": right, "format_reward": 1.0}, ["accuracy_reward", "format_reward"]),
        ({"base_status": "pass", "plus_status": lambda p, s: "pass" if right(p, s) else "fail"},
         ["base_status", "plus_status"]),
    ],
)  # fmt: skip
def test_verdicts_that_differ_are_chosen_by_the_reader(tmp_path, cells, names):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, **cells))
    with pytest.raises(LoadError) as told:
        foreign.load([path])
    assert all(f"columns.verdict={name}" in str(told.value) for name in names) and "mean" in str(told.value)
    for name in names:
        study = foreign.load([path], {"verdict": name})
        values = [cells[name](p, 0) if callable(cells[name]) else cells[name] for p in range(6)]
        assert [c > 0 for _, c in rates(study).values()] == [True] * 6 or not all(values)
        assert f"verdict is {name}," in study.column_notes[0]


def test_values_of_several_kinds_beside_a_verdict_change_nothing(tmp_path):
    rows = grid(question_id=lambda p, s: p, label=lambda p, s: int(right(p, s)), note=lambda p, s: [s, "x", 0.5][s % 3])
    rows[0]["note"] = float("nan")
    study = foreign.load([lines(tmp_path / "a.jsonl", rows)])
    assert [c for _, c in rates(study).values()] == list(SOLVED.values())


def test_verdicts_that_agree_are_one(tmp_path):
    rows = grid(id=lambda p, s: p, acc=right, score=lambda p, s: 1 if right(p, s) else -1)
    assert "verdict is acc (score agrees)" in foreign.load([lines(tmp_path / "a.jsonl", rows)]).column_notes[0]


def test_an_id_of_one_run_gives_way_to_the_text_of_the_problem(tmp_path):
    def run(name, offset, **more):
        own = {"id": lambda p, s: f"r{offset + p}", "prompt": lambda p, s: PROBLEMS[p], "correct": right}
        return lines(tmp_path / f"{name}.jsonl", grid(**{**own, **more}))

    study = foreign.load([run("a", 0), run("b", 50)])
    assert list(rates(study, "a")) == list(rates(study, "b")) == PROBLEMS
    own_rows = foreign.load([run("c", 0, id=lambda p, s: f"{p}-{s}")])
    in_batch = foreign.load([run("d", 0, id=lambda p, s: s)])
    assert list(rates(own_rows)) == list(rates(in_batch)) == PROBLEMS
    named = foreign.load([run("a", 0)], {"problem": "id"})
    assert list(rates(named)) == [f"r{p}" for p in range(6)]
    alone = foreign.load([run("e", 0, uid=lambda p, s: f"u{p}", id=lambda p, s: 7)])
    assert list(rates(alone)) == PROBLEMS


def test_problems_with_the_same_text_stay_apart_by_their_ids(tmp_path):
    rows = [{"id": i, "prompt": "same" if i < 2 else f"q{i}", "correct": i % 2} for i in range(9)]
    assert len(rates(foreign.load([lines(tmp_path / "a.jsonl", rows)]))) == 9


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_a_row_for_each_problem_with_counts_or_with_verdicts(tmp_path, kind):
    def write(name, frame):
        path = tmp_path / f"{name}.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        elif kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_json(path, orient="records", lines=True, compression="infer")
        return str(path)

    counts = write("counts", pd.DataFrame({"problem_id": list("abc"), "n": 4, "c": [0, 3, 4]}))
    lists = write("lists", pd.DataFrame({"problem_id": list("abc"), "verdicts": [[0] * 4, [1, 1, 0, 1], [1] * 4]}))
    study = foreign.load([counts, lists])
    assert study.arms == ["counts", "lists"] and rates(study, "counts") == rates(study, "lists")
    assert rates(study) == {"a": (4, 0), "b": (4, 3), "c": (4, 4)}
    with pytest.raises(LoadError, match="has no text column"):
        study.samples("counts", "samples", ["token_ids"])
    assert study.samples("counts", "samples", ["completion"]).empty
    assert compare(study, "counts").estimates["value"].notna().all()


def test_lists_of_answers_belong_to_lists_of_verdicts(tmp_path):
    rows = [
        {"question": f"q{p}", "responses": 1, "output": [f"a{p}", f"b{p}"], "is_correct": [True, p > 0]}
        for p in range(3)
    ]
    study = foreign.load([lines(tmp_path / "a.jsonl", rows)])
    found = study.samples("a", "samples", ["problem_id", "completion", "outcome", "sample_index"], ["q0", "q2"])
    assert found["completion"].tolist() == ["a0", "b0", "a2", "b2"] and found["sample_index"].tolist() == [0, 1, 0, 1]
    assert found["outcome"].tolist() == ["correct", "wrong", "correct", "correct"]


def test_evalplus_results_hold_two_verdicts(tmp_path):
    path = tmp_path / "eval_results.json"
    answers = [{"solution": "x", "base_status": "pass", "plus_status": status} for status in ("pass", "fail")]
    path.write_text(json.dumps({"date": "x", "hash": "y", "eval": {f"HumanEval/{p}": answers for p in range(3)}}))
    with pytest.raises(LoadError, match=r"columns\.verdict=base_status or columns\.verdict=plus_status"):
        foreign.load([str(path)])
    assert set(rates(foreign.load([str(path)], {"verdict": "plus_status"})).values()) == {(2, 1)}


@pytest.mark.parametrize(
    "order",
    [lambda rows: rows * 2, lambda rows: rows * 3, lambda rows: [r for r in rows if r["text"].endswith("0")] * 2],
)
@pytest.mark.parametrize("texts", [True, False])
def test_a_file_that_comes_again_is_refused(tmp_path, order, texts):
    rows = [
        {"question_id": f"p{p}", "text": f"{p} {s}", "passed": (p * s) % 3 == 1} for p in range(40) for s in range(4)
    ]
    rows = order(rows)
    if not texts and len(rows) == 80:
        rows = [{**row, "passed": at % 7 % 2 == 0} for at, row in enumerate(rows[:40])] * 2
    rows = [
        {("response" if texts else "unused") if key == "text" else key: v for key, v in row.items()} for row in rows
    ]
    with pytest.raises(LoadError, match=r"the same \d+ rows in the same order \d times"):
        foreign.load([lines(tmp_path / "a.jsonl", rows)])
    numbered = [{**row, "sample_index": at} for at, row in enumerate(rows)]
    assert len(rates(foreign.load([lines(tmp_path / "b.jsonl", numbered)]))) == 40


def test_equal_short_answers_are_samples(tmp_path):
    def rows(order):
        return [
            {"id": p, "output": "4", "correct": p < 3}
            for p, _ in sorted(((p, s) for p in range(6) for s in range(8)), key=order)
        ]

    by_problem = foreign.load([lines(tmp_path / "a.jsonl", rows(lambda pair: pair))])
    by_sample = foreign.load([lines(tmp_path / "b.jsonl", rows(lambda pair: (pair[1], pair[0])))])
    assert rates(by_problem) == rates(by_sample) == {str(p): (8, 8 * (p < 3)) for p in range(6)}
    one = [{"id": 0, "output": "4", "correct": 1}] * 8
    wrong = [{"id": p, "correct": 0} for _ in range(4) for p in range(40)]
    assert rates(foreign.load([lines(tmp_path / "c.jsonl", one)])) == {"0": (8, 8)}
    assert set(rates(foreign.load([lines(tmp_path / "d.jsonl", wrong)])).values()) == {(4, 0)}


def test_sample_numbers_that_recur_are_refused_and_the_reader_names_them(tmp_path):
    rows = grid(id=lambda p, s: p, draw=lambda p, s: s % 3, correct=right)
    path = lines(tmp_path / "a.jsonl", rows)
    assert rates(foreign.load([path]))
    with pytest.raises(LoadError, match="column id: '0', sample 0 is there more than once"):
        foreign.load([path], {"sample": "draw"})


def test_steps_of_training_are_not_samples_of_one_model(tmp_path):
    rows = [{**row, "step": step} for step in (10, 20) for row in grid(input=lambda p, s: PROBLEMS[p], score=right)]
    with pytest.raises(LoadError, match="column step holds 2 training steps, 10 to 20, of the same problems"):
        foreign.load([lines(tmp_path / "a.jsonl", rows)])
    other = [{**row, "input": f"{row['step']} {row['input']}"} for row in rows]
    assert "2 values of step are pooled" in foreign.load([lines(tmp_path / "b.jsonl", other)]).column_notes[0]


def test_a_data_set_is_a_benchmark_where_it_groups_problems(tmp_path):
    rows = grid(id=lambda p, s: p, dataset=lambda p, s: "ab"[p % 2], correct=right)
    path = lines(tmp_path / "a.jsonl", rows)
    assert (
        foreign.load([path]).benchmarks == ["a", "b"] and "benchmark is dataset" in foreign.load([path]).column_notes[0]
    )
    assert foreign.load([path], {"benchmark": "none"}).benchmarks == ["samples"]
    links = [{**row, "dataset": f"https://example.org/{row['id']}"} for row in rows]
    assert foreign.load([lines(tmp_path / "b.jsonl", links)]).benchmarks == ["samples"]


@pytest.mark.parametrize("columns", [
    {"score": [1.1, 0.1], "format_score": [1.0, 1.0]}, {"accuracy_reward": [1.0, 0.5], "format_reward": [1.0, 0.0]},
    {"score": [0.9, 0.1], "status": ["success", "success"]},
])  # fmt: skip
def test_a_reward_for_the_form_does_not_stand_in_for_a_score(tmp_path, columns):
    first, last = columns
    rows = [{"id": p, **{name: cells[s] for name, cells in columns.items()}} for p in range(4) for s in range(2)]
    with pytest.raises(LoadError, match=rf"column {first}, row \d: .* columns\.verdict={last} takes another"):
        foreign.load([lines(tmp_path / "a.jsonl", rows)])


def test_ids_that_count_from_zero_are_no_proof_of_the_same_problems(tmp_path):
    def arm(name, text):
        return lines(tmp_path / f"{name}.jsonl", grid(id=lambda p, s: p, question=text, correct=right))

    one, other = arm("one", lambda p, s: f"aime {p}"), arm("other", lambda p, s: f"amc {p}")
    with pytest.raises(LoadError, match=r"one\.jsonl and .*other\.jsonl: column id names other problems"):
        foreign.load([one, other])
    turned = arm("turned", lambda p, s: f"aime {(p + 1) % len(PROBLEMS)}")
    taken = foreign.load([one, turned]).column_notes
    assert all("problem is question" in line for line in taken)


def test_ids_of_64_bits_stay_apart(tmp_path):
    rows = grid(id=lambda p, s: 2**63 + p, correct=right)
    counted = foreign.load([lines(tmp_path / "a.jsonl", rows)]).counts
    assert counted["problem_id"].nunique() == len({row["id"] for row in rows}) == len(counted)


def test_files_of_other_formats_fit_together(tmp_path):
    frame = pd.DataFrame(grid(id=lambda p, s: p, correct=right))
    frame.to_csv(tmp_path / "b.csv", index=False, lineterminator="\r\n", encoding="utf-8-sig")
    (tmp_path / "c.json").write_text(json.dumps([{"id": str(row["id"]), "correct": int(row["correct"])} for row in
                                                 frame.to_dict("records")]))  # fmt: skip
    text = "".join(
        json.dumps({"id": row["id"], "correct": row["correct"]}) + "\r\n" for row in frame.to_dict("records")
    )
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with gzip.open(tmp_path / "d.csv.gz", "wt") as file:
        frame.to_csv(file, index=False)
    (tmp_path / "e.json").write_text(text)
    study = foreign.load([str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.json", "d.csv.gz", "e.json")])
    assert study.arms == list("abcde") and all(rates(study, arm) == rates(study) for arm in study.arms)
    assert len(compare(study, "a").pairs) == 4


def test_files_alone_are_named_after_themselves_or_their_directories(tmp_path):
    paths = []
    for name in ("x", "y=1"):
        (tmp_path / name).mkdir()
        paths.append(lines(tmp_path / name / "rollouts.jsonl", grid(id=lambda p, s: p, correct=right)))
    assert foreign.load(paths).arms == ["x/rollouts", "y=1/rollouts"]
    assert foreign.load(paths[1:]).arms == ["rollouts"]
    assert foreign.load([f"ours/3={paths[0]}"]).runs["seed"].tolist() == [3]


def write_bytes(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.jsonl", write_bytes(b""), "has no rows"),
        ("a.csv", write_bytes(b""), "has no rows"),
        ("a.csv", write_bytes(b"id,correct\n"), "has no rows"),
        ("a.jsonl", write_bytes(b'{"id": 1, "correct": 1}\n{"id": 2, "corr'), "cannot be read"),
        ("a.jsonl", write_bytes('{"id": "ä", "correct": 1}\n'.encode("latin-1")), "cannot be read"),
        ("a.csv", write_bytes("id,correct\nä,1\n".encode("latin-1")), "cannot be read|column id"),
        ("a.jsonl", write_bytes('{"id": "a", "correct": 1}\n'.encode("utf-16")), "cannot be read"),
        ("a.jsonl.gz", write_bytes(gzip.compress(b'{"id": 1, "correct": 1}\n')[:-12]), "cannot be read"),
        ("a.jsonl.gz", write_bytes(b"no gzip"), "cannot be read"),
        ("a.parquet", write_bytes(b"PAR1" + b"x" * 20), "cannot be read"),
        ("a.jsonl", lambda path: path.mkdir(), "is a directory"),
        ("a.pt", write_bytes(b"x"), "a pickle may run code"),
        ("a.txt", write_bytes(b"x"), "must end in"),
        ("a.json", write_bytes(b'{"a": 1}'), "must hold a list of objects"),
        ("a.json", write_bytes(b"[]"), "has no rows"),
        ("a.json", write_bytes(b"[" * 100_000), "cannot be read"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 4, "c": 5}\n'), "c=5 right answers of n=4"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 0, "c": 0}\n'), "right answers of n=0"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 4, "c": 0.5}\n'), "column c, row 1: '0.5' is no whole number"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 4}\n{"id": 2, "n": 4, "c": 1}\n'), "column c, row 1"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 4, "c": 1}\n{"id": 1, "n": 4, "c": 1}\n'), "'1' is there more than once"),
        ("a.jsonl", write_bytes(b'{"id": 1, "n": 4, "c": 1}\n{"id": 2, "n": 8, "c": 1}\n'), "estimators need as many"),
        ("a.jsonl", write_bytes(b'{"id": 1, "verdicts": [1, 0]}\n{"id": 2, "verdicts": [1]}\n'), "estimators need as many"),
        ("a.jsonl", write_bytes(b'{"id": 1, "verdicts": [1, 0]}\n{"id": 2, "verdicts": []}\n'), "row 2: holds no verdict"),
        ("a.jsonl", write_bytes(b'{"id": 1, "verdicts": [1, 0]}\n{"id": 1, "verdicts": [1, 0]}\n'), "'1' is there more than"),
        ("a.jsonl", write_bytes(b'{"id": 1, "ok": true, "x": 1}\n'), r"has no verdict column .*; columns\.verdict=ok$"),
        ("a.jsonl", write_bytes(b'{"id": 1, "verdicts": [1, 0]}\n{"id": 2, "verdicts": [1, null]}\n'), "row 2: 'None'"),
        ("a.jsonl", write_bytes(b'{"id": 1, "score": 0.25}\n{"id": 2, "score": 1}\n'), "score, row 1: '0.25' is neither"),
        ("a.jsonl", write_bytes(b'{"id": 1, "correct": true}\n{"id": 2, "correct": null}\n'), "column correct, row 2: 'None'"),
        ("a.jsonl", write_bytes(b'{"id": 1, "acc": {"a": 1, "b": 0}}\n'), "is neither right"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_a_line(tmp_path, name, make, words):
    path = tmp_path / name
    make(path)
    with pytest.raises(LoadError, match=words) as told:
        foreign.load([str(path)])
    assert "\n" not in str(told.value) and name in str(told.value)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"verdict": "solved"}, r"columns.verdict=solved: .* has no such column; it has id, correct, other"),
        ({"verdict": "other"}, "column other, row 1: 'x' is neither right"),
        ({"problem": "nothing"}, "columns.problem=nothing"),
    ],
)
def test_a_column_that_is_named_has_to_be_there(tmp_path, chosen, words):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, correct=right, other="x"))
    with pytest.raises(LoadError, match=words):
        foreign.load([path], chosen)


def test_texts_that_are_not_utf_8_are_refused_wherever_they_stand(tmp_path):
    good = b'{"id": "a%d", "correct": 1}\n'
    (tmp_path / "a.jsonl").write_bytes(b"".join(good % i for i in range(1500)) + b'{"id": "\xe4", "correct": 1}\n')
    broken = pa.array([b"\xe4", b"b"]).view(pa.string())
    pq.write_table(pa.table({"id": broken, "correct": [1, 0]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(LoadError, match="cannot be read"):
            foreign.load([str(tmp_path / name)])


def test_conversations_of_trl_in_parquet_are_problems(tmp_path):
    def said(role, text):
        return [{"role": role, "content": text}]

    rows = grid(
        step="7",
        prompt=lambda p, s: said("user", PROBLEMS[p]),
        completion=lambda p, s: said("assistant", str(s)),
        isCorrect=lambda p, s: float(right(p, s)),
        advantage=0.0,
    )
    pd.DataFrame(rows).to_parquet(tmp_path / "completions_00007.parquet")
    study = foreign.load([str(tmp_path / "completions_00007.parquet")])
    assert [c for _, c in rates(study).values()] == list(
        SOLVED.values()
    ) and "verdict is isCorrect" in study.column_notes[0]
    assert PROBLEMS[0] in next(iter(rates(study)))


def test_a_seed_for_a_file_of_several_is_refused(tmp_path):
    rows = [{**row, "seed": seed} for seed in (0, 1) for row in grid(id=lambda p, s: p, correct=right)]
    path = lines(tmp_path / "a.jsonl", rows)
    assert foreign.load([f"a={path}"]).runs["seed"].tolist() == [0, 1]
    with pytest.raises(LoadError, match="its column seed names 2; a="):
        foreign.load([f"a/3={path}"])


def test_files_without_a_common_problem_are_refused(tmp_path):
    paths = [lines(tmp_path / f"{x}.jsonl", grid(id=lambda p, s, x=x: f"{x}{p}", correct=right)) for x in "ab"]
    with pytest.raises(LoadError, match="other problems than the first arm"):
        compare(foreign.load(paths), "a")


def test_advice_is_about_files(tmp_path):
    paths = [lines(tmp_path / f"{x}.jsonl", grid(id=lambda p, s: p, correct=right, output="x")) for x in "ab"]
    for files in (paths, paths[:1]):
        told = "\n".join(verdict(compare(foreign.load(files), "a")))
        assert not any(word in told for word in ("train.py", "evaluate.py", "-m seed")) and "=<file>" in told


def test_counts_of_two_real_models_give_the_estimates_of_a_product_over_draws(tmp_path):
    place = "tests/data/deepscaler32k"
    told = warm.finish("report.py", tmp_path / "log", f"samples=[base={place}/base.jsonl,rl={place}/rl.jsonl]",
                       f"out={tmp_path / 'out'}", "pass_k=[1,8,64]", "columns.benchmark=source")  # fmt: skip
    assert f"{place}/rl.jsonl: counts are n and c, problem is id, benchmark is source" in told and "no texts" in told
    found = pd.read_csv(tmp_path / "out" / "results.csv").set_index(["arm", "benchmark", "metric"])["value"]
    for arm in ("base", "rl"):
        rows = pd.read_json(REPOSITORY / place / f"{arm}.jsonl", lines=True)
        for k in (1, 8, 64):
            miss = [
                np.prod([max(n - c - i, 0) / (n - i) for i in range(k)])
                for n, c in zip(rows["n"], rows["c"], strict=True)
            ]
            means = pd.Series(100 * (1 - np.array(miss))).groupby(rows["source"]).mean()
            for benchmark, value in means.items():
                assert found[arm, benchmark, f"pass@{k}"] == pytest.approx(value)


@pytest.mark.parametrize("typed", ["{path}", "ours={path}", "[ours={path}]", "['ours={path}','theirs/1={path}']"])
def test_files_are_typed_with_or_without_quotes(tmp_path, typed):
    path = lines(
        tmp_path / "a b=1.jsonl" if "'" in typed else tmp_path / "a.jsonl", grid(id=lambda p, s: p, correct=right)
    )
    told = warm.finish("report.py", tmp_path / "log", f"samples={typed.format(path=path)}", f"out={tmp_path / 'out'}")
    assert "verdict is correct, problem is id" in told and (tmp_path / "out" / "report.html").exists()


def test_a_refusal_is_a_line_and_status_2(tmp_path):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, acc=right, score=1))
    told = warm.finish("report.py", tmp_path / "log", f"samples={path}", f"out={tmp_path / 'out'}", status=2)
    assert told.startswith("error: samples: ") and told.count("\n") == 1 and "columns.verdict=score" in told
    told = warm.finish(
        "report.py", tmp_path / "log", f"samples={path}", f"out={tmp_path / 'out'}", "columns.verdict=acc"
    )
    assert "verdict is acc" in told


def test_copies_of_one_file_are_no_seeds(tmp_path):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, correct=right))
    comparison = compare(foreign.load([f"a/0={path}", f"a/1={path}", f"a/2={path}", f"b={path}"]), "a")
    assert any(line.startswith("of a, seed 1, 2 solved the same") for line in verdict(comparison))


def test_a_column_is_one_thing(tmp_path):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, correct=right))
    with pytest.raises(LoadError, match=r"columns\.verdict and columns\.problem are both correct"):
        foreign.load([path], {"verdict": "correct", "problem": "correct"})


def test_texts_as_views_are_texts(tmp_path):
    rows = grid(id=lambda p, s: f"p{p}", correct=right)
    table = pa.table({"id": pa.array([row["id"] for row in rows], pa.string_view()),
                      "correct": [row["correct"] for row in rows]})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    counted = foreign.load([str(tmp_path / "a.parquet")]).counts
    assert (
        len(counted) == len({row["id"] for row in rows}) and counted["c"].sum() == pd.DataFrame(rows)["correct"].sum()
    )


def test_a_seed_is_a_plain_number(tmp_path):
    path = lines(tmp_path / "a.jsonl", grid(id=lambda p, s: p, correct=right))
    with pytest.raises(LoadError, match="the seed after / must be a whole number"):
        foreign.load([f"a/\u00b2={path}"])
