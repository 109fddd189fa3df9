"""Problems from files and data sets: which column is what, what is refused and in which words, options in a fixed order."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from ngrpo.grading.exact import Exact
from ngrpo.tasks import rows
from ngrpo.tasks.multiple_choice import MultipleChoice, lenient, strict
from ngrpo.tasks.overlap import overlap
from ngrpo.tasks.questions import Questions


def write(place, content, encoding="utf-8"):
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in content]
    place.write_bytes("\n".join(lines).encode(encoding))
    return str(place)


def questions(path, **settings):
    return Questions(name="own", grader=Exact(), path=path, **settings)


@pytest.mark.parametrize(
    "row, problem, gold",
    [
        ({"problem": "1+1?", "answer": "2"}, "1+1?", "2"),
        ({"Question": "1+1?", "Answer": 2}, "1+1?", "2"),
        ({"question": "1+1?", "answer": 2.0}, "1+1?", "2"),
        ({"question": "1+1?", "answer": "Add them: <<1+1=2>>\n#### 2"}, "1+1?", "2"),
        ({"problem": "p", "solution": r"\boxed{1}, no: \boxed{\frac{1}{2}}."}, "p", r"\frac{1}{2}"),
        ({"problem": "p", "solution": r"so \boxed{\frac{1}{2}}", "answer": "frac{1}{2}"}, "p", r"\frac{1}{2}"),
        ({"problem": "p", "solution": "no box", "answer": "7"}, "p", "7"),
        (
            {
                "prompt": [{"role": "user", "content": "1+1?"}],
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {"index": 5},
            },
            "1+1?",
            "2",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "p"}],
                "reward_model": {"ground_truth": {"target": "3pi"}},
                "extra_info": {"solution": r"\boxed{3\pi}"},
            },
            "p",
            r"3\pi",
        ),
    ],
)
def test_the_rule_for_columns(tmp_path, row, problem, gold):
    jsonl = write(tmp_path / "own.jsonl", [row])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "own.parquet")
    for path in (jsonl, str(tmp_path / "own.parquet")):
        found = questions(path).problems[0]
        assert (found.prompt, found.gold, found.is_message) == (problem, gold, True)


def test_named_columns_go_before_the_rule(tmp_path):
    path = write(
        tmp_path / "own.jsonl", [{"problem": "a", "text": "b", "answer": "1", "solution": r"\boxed{2}", "key": "x"}]
    )
    task = questions(path, columns={"problem": "text", "answer": "answer", "id": "key"}, instruction="Think.")
    assert [(p.id, p.prompt, p.gold, p.question) for p in task.problems] == [("x", "b\nThink.", "1", "b")]


GOOD = {"id": "a", "problem": "1+1?", "answer": "2"}


@pytest.mark.parametrize(
    "content, words",
    [
        ([], ["holds no rows"]),
        ([GOOD, "{"], ["row 2", "not JSON"]),
        ([GOOD, "[" * 100_000], ["row 2", "not JSON"]),
        ([GOOD, "3"], ["row 2", "int", "object"]),
        ([{"id": "a", "text": "1+1?", "answer": "2"}], ["row 1", "problem or question", "task.columns.problem"]),
        ([{"id": "a", "problem": "1+1?"}], ["row 1", "answer", "task.columns.answer"]),
        ([GOOD, {"id": "b", "answer": "2"}], ["row 2", "problem", "missing"]),
        ([GOOD, {**GOOD, "id": "b", "problem": "  "}], ["row 2", "problem", "empty"]),
        ([GOOD, {**GOOD, "id": "b", "answer": ""}], ["row 2", "answer", "empty", "unanswered"]),
        ([GOOD, {**GOOD, "id": "b", "answer": "\\boxed{}"}], ["row 2", "answer", "empty"]),
        ([GOOD, {**GOOD, "id": "b", "answer": {"x": 1}}], ["row 2", "answer", "dict"]),
        ([GOOD, {**GOOD, "id": "b", "answer": True}], ["row 2", "answer", "bool"]),
        ([GOOD, {**GOOD, "problem": "2+2?"}], ["row 2", "repeats", "row 1"]),
        ([{**GOOD, "id": "../x"}], ["row 1", "id"]),
        ([{**GOOD, "id": "/etc/passwd"}], ["row 1", "id"]),
        ([{**GOOD, "id": "a\u0000"}], ["row 1", "id"]),
        ([{**GOOD, "id": "a" * 10_000}], ["row 1", "id"]),
        ([{**GOOD, "id": ""}], ["row 1", "id"]),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_in_one_line_with_their_number(tmp_path, content, words):
    path = write(tmp_path / "own.jsonl", content)
    with pytest.raises(ValueError) as caught:
        questions(path)
    line = str(caught.value)
    assert "\n" not in line and "own.jsonl" in line and len(line) < 600
    assert all(word in line for word in words), line


def test_bad_files_are_refused(tmp_path):
    latin = write(tmp_path / "latin.jsonl", [GOOD, {**GOOD, "id": "b", "problem": "é?"}], "latin-1")
    broken = write(tmp_path / "broken.parquet", ["PAR1"])
    other = write(tmp_path / "own.txt", [GOOD])
    cases = {
        latin: "row 2 is not UTF-8",
        broken: "no readable parquet",
        other: "must end in",
        str(tmp_path): "no such file",
    }
    for path, words in cases.items():
        with pytest.raises(ValueError, match=words):
            questions(path)
    with pytest.raises(ValueError, match=r"neither own\.jsonl nor own\.parquet; set task\.path"):
        Questions(name="own", grader=Exact(), directory=str(tmp_path))


def test_rows_without_an_answer_can_be_left_out_and_the_others_keep_their_ids(tmp_path):
    content = [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": ""}, {"problem": "c", "answer": "3"}]
    task = questions(write(tmp_path / "own.jsonl", content), unanswered="leave_out")
    assert [(p.id, p.gold) for p in task.problems] == [("own/0", "1"), ("own/2", "3")]


def test_the_version_is_the_content_and_not_the_place(tmp_path):
    one, same = write(tmp_path / "own.jsonl", [GOOD]), write(tmp_path / "moved.jsonl", [GOOD])
    changed = write(tmp_path / "changed.jsonl", [{**GOOD, "answer": "3"}])
    assert questions(one).version == questions(same).version != questions(changed).version
    by_directory = Questions(name="own", grader=Exact(), directory=str(tmp_path))
    assert by_directory.version == questions(one).version


def test_a_data_set_that_cannot_be_reached_is_told_with_what_to_give_instead(monkeypatch):
    import datasets

    def unreachable(*arguments, **settings):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"owner/x cannot be loaded \(no route to host\); set task\.path=") as caught:
        Questions(name="own", grader=Exact(), dataset="owner/x", split="test")
    assert "\n" not in str(caught.value)


def test_a_data_set_goes_the_same_way_as_a_file(monkeypatch):
    import datasets

    asked = []

    def load(*arguments, **settings):
        asked.append((arguments, settings))
        return datasets.Dataset.from_list([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows._download.cache_clear()
    task = Questions(name="own", grader=Exact(), dataset="owner/y", subset="main", split="test")
    assert asked == [(("owner/y", "main"), {"split": "test"})]
    assert [(p.id, p.prompt, p.gold) for p in task.problems] == [("a", "1+1?", "2")]


def test_only_what_follows_the_thinking_part_counts(tmp_path):
    path = write(tmp_path / "own.jsonl", [GOOD])
    texts = [r"\boxed{2}", r"\boxed{2}</think>", r"\boxed{3}</think>\boxed{2}", r"</think>\boxed{3}"]
    reasoning, plain = questions(path, answer_start="</think>"), questions(path)
    problems = list(reasoning.problems) * 4
    assert [s.outcome for s in reasoning.score(problems, texts)] == ["unparsed", "unparsed", "correct", "wrong"]
    assert [s.outcome for s in plain.score(problems, texts)] == ["correct", "correct", "correct", "wrong"]


def choices(tmp_path, **settings):
    content = [
        {
            "Record ID": f"r{at}",
            "Question": f"Which of {at}?",
            "Correct Answer": f"right {at}",
            **{f"Incorrect Answer {number}": f"wrong {at} {number}" for number in (1, 2, 3)},
        }
        for at in range(200)
    ]
    path = write(tmp_path / "gpqa.jsonl", content)
    return MultipleChoice(name="gpqa_diamond", read=settings.pop("read", strict), path=path, **settings)


def test_the_letter_names_the_right_option_and_all_letters_occur_alike(tmp_path):
    task = choices(tmp_path)
    for at, problem in enumerate(task.problems):
        assert f"{problem.gold}) right {at}\n" in problem.prompt
        assert all(problem.prompt.count(f"wrong {at} {number}\n") == 1 for number in (1, 2, 3))
    golds = [problem.gold for problem in task.problems]
    assert all(30 <= golds.count(letter) <= 70 for letter in "ABCD")


def test_the_order_depends_on_seed_and_id_alone(tmp_path):
    task, again, other = choices(tmp_path), choices(tmp_path), choices(tmp_path, seed=1)
    assert task.problems == again.problems
    assert task.problems != other.problems
    lines = (tmp_path / "gpqa.jsonl").read_text().split("\n")
    half = MultipleChoice(name="gpqa_diamond", read=strict, path=write(tmp_path / "half.jsonl", lines[100:]))
    assert list(half.problems) == list(task.problems)[100:]


@pytest.mark.parametrize(
    "text, by_strict, by_lenient",
    [
        (r"so \boxed{B}", "B", "B"),
        (r"so \boxed{\text{(C)}}.", "C", "C"),
        (r"\boxed{A} or rather \boxed{D}", "D", "D"),
        ("thus\nAnswer: B", "B", "B"),
        ("thus\n**Answer: (c)**", "C", "C"),
        (r"\boxed{42} as B says", None, "B"),
        ("this is a guess", None, "A"),
        ("Answer: none of them", None, None),
        ("", None, None),
        ("B" + " x" * 300, None, None),
    ],
)
def test_strict_and_lenient_letters(text, by_strict, by_lenient):
    assert (strict(text), lenient(text)) == (by_strict, by_lenient)


def test_options_that_are_missing_or_alike_are_refused(tmp_path):
    row = {"Question": "q", "Correct Answer": "x", "Incorrect Answer 1": "y", "Incorrect Answer 2": "z"}
    for last, words in (({}, "incorrect_answer_3"), ({"Incorrect Answer 3": "x"}, "twice")):
        path = write(tmp_path / f"{words}.jsonl", [{**row, **last}])
        with pytest.raises(ValueError, match=f"row 1 .*{words}"):
            MultipleChoice(name="gpqa_diamond", read=strict, path=path)


def test_overlap_counts_the_same_text_and_nearly_the_same(tmp_path):
    long = "A train leaves the station at noon and runs at sixty miles per hour until it meets the other train"
    train = [
        {"problem": text, "answer": "1"}
        for text in (f"{long}.", "What is 1+1?", "Nothing like the rest of these at all")
    ]
    same = {"problem": f"  {long.upper()} ", "answer": "1"}
    near = {"problem": long.replace("sixty", "fifty"), "answer": "1"}
    far = {"problem": "A train leaves the station at noon. How many people wait there for the next one?", "answer": "1"}
    short = {"problem": "What is $1 + 1$ ?", "answer": "2"}
    training = questions(write(tmp_path / "train.jsonl", train), instruction="Think step by step about all of this.")
    benchmark = questions(write(tmp_path / "test.jsonl", [same, near, far, short]), instruction="Think step by step.")
    assert overlap(training, {"b": benchmark}) == {"b": {"exact": 2, "near": 1}}
    assert overlap(benchmark, {"b": benchmark}) == {"b": {"exact": 4, "near": 0}}
