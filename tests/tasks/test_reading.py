"""Data sets of other people: nothing that a question needs is dropped, every gold is one, and each choice is told."""

import json

import pytest

from ngrpo.grading.exact import Exact
from ngrpo.grading.latex import Latex
from ngrpo.tasks.audit import audit, between, lenient
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.questions import Questions
from ngrpo.tasks.respelling import respellings


@pytest.fixture
def read(tmp_path):
    def make(rows, grader=None, name="own", **settings):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Questions(name=name, grader=grader or Exact(), path=str(path), **settings)

    return make


def outcome(task, answer, at=0):
    return task.score([task.problems[at]], [f"\\boxed{{{answer}}}"])[0].outcome


ASDIV = {"Body": "Seven apples and two pears.", "Question": "How many?", "Answer": "9", "Solution-Type": "Addition"}


@pytest.mark.parametrize(
    "row, prompt",
    [
        (ASDIV, "Seven apples and two pears. How many?"),
        ({"Question": "q?", "Passage": "One.\nTwo.", "Answer": "1"}, "One.\nTwo.\n\nq?"),
        ({"instruction": "Add.", "input": "1 and 2", "target": "3"}, "Add.\n\n1 and 2"),
        ({"instruction": "Add 1 and 2.", "input": "", "target": "3"}, "Add 1 and 2."),
        ({"question": {"stem": "q?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
          "answerKey": "B"}, "q?\n\nA) x\nB) y"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_question_is_asked(read, row, prompt):
    task = read([row])
    assert task.problems[0].prompt == task.problems[0].question == prompt
    assert any("joined" in note or "listed" in note for note in task.notes)


def test_a_template_says_what_is_asked_and_the_version_knows(read):
    by_rule, own = read([ASDIV]), read([ASDIV], columns={"problem": "Story: {Body}\\n{question}"})
    assert own.problems[0].prompt == "Story: Seven apples and two pears.\nHow many?"
    alone = read([ASDIV], columns={"problem": "Question"})
    assert alone.problems[0].prompt == "How many?"
    assert len({by_rule.version, own.version, alone.version}) == 3
    with pytest.raises(ValueError, match=r"no column tale; it has body, question.*task\.columns\.problem"):
        read([ASDIV], columns={"problem": "{tale} {question}"})


def test_a_column_that_may_be_needed_is_for_the_user_to_say(read):
    rows = [{"id": f"{at}", "question": "Who is right?", "dialogue": f"Ann says {at}, Bob says no.", "answer": "Ann",
             "source": "a book of several words", "level": "hard"} for at in range(8)]  # fmt: skip
    with pytest.raises(ValueError, match=r"may need dialogue.*problem='\{dialogue\} \{question\}'.*problem=question "):
        read(rows)
    task = read(rows, columns={"problem": "{dialogue} {question}"})
    assert task.problems[3].prompt == "Ann says 3, Bob says no. Who is right?"
    assert "columns not used: source, level" in task.notes
    assert read(rows, columns={"problem": "question"}).data.needed == ["dialogue"]


def test_a_column_that_repeats_the_question_is_not_needed(read):
    rows = [{"problem": f"What is {at} plus {at}?", "prompt": f"Solve: What is {at} plus {at}? Box it.",
             "answer": "1"} for at in range(8)]  # fmt: skip
    assert read(rows).problems[1].prompt == "What is 1 plus 1?"


FOUR = ["3", "5", "8", "6"]


@pytest.mark.parametrize(
    "row, letter, text",
    [
        ({"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "3"}, "C", "8"),
        ({"choices": {"text": FOUR, "label": list("ABCD")}, "answerKey": "D"}, "D", "6"),
        ({"options": FOUR, "answer": "B"}, "B", "5"),
        ({"options": ["A)3", "B)5", "C)8", "D)6"], "correct": "D"}, "D", "6"),
        ({"options": FOUR, "answer": "C", "answer_index": 2}, "C", "8"),
        ({"choices": ["red", "blue"], "answer": "blue"}, "B", "blue"),
        ({"opa": "3", "opb": "5", "opc": "8", "opd": "6", "cop": 0}, "A", "3"),
        ({"A": "red", "B": "blue", "C": "none", "answer": "B"}, "B", "blue"),
        ({"option1": "Ann", "option2": "Bob", "answer": "2"}, "B", "Bob"),
        ({"options": {"A": "3", "B": "5"}, "answer": "A"}, "A", "3"),
        ({"endings": json.dumps(["stops", "goes"]), "label": "1"}, "B", "goes"),
        ({"choices": ["0", "none"], "answer": "none"}, "B", None),
        ({"options": "a ) 38 , b ) 1 , 000 , c ) none", "correct": "b"}, "B", "1 , 000"),
    ],
)
def test_choices_are_asked_and_the_answer_names_one(read, row, letter, text):
    task = read([{"question": "Which?", **row}])
    prompt, golds = task.problems[0].prompt, task.problems[0].golds
    assert prompt.startswith("Which?\n\nA) ") and golds == ((letter, text) if text else (letter,))
    assert all(outcome(task, gold) == "correct" for gold in golds) and outcome(task, "Z") == "wrong"
    assert text is None or f"{letter}) {text}" in prompt


def test_an_index_counts_from_one_where_zero_is_never_and_the_last_is(read):
    rows = [{"question": f"q{at}", "choices": ["w", "x", "y", "z"], "label": at} for at in (1, 4, 2)]
    task = read(rows)
    assert [problem.gold for problem in task.problems] == ["A", "D", "B"]
    assert any("counted from 1" in note for note in task.notes)


def test_an_answer_that_may_be_an_index_or_a_text_is_for_the_user_to_say(read):
    rows = [{"question": "q", "choices": ["1", "2", "3", "4"], "answer": 2}]
    with pytest.raises(
        ValueError, match=r"row 1: the answer '2' means '3' \(index\) or '2' \(text\); set task\.answer_f"
    ):
        read(rows)
    assert read(rows, answer_form="text").problems[0].golds == ("B", "2")
    assert read(rows, answer_form="index").problems[0].gold == "C"
    with pytest.raises(ValueError, match=r"answer_form 'roman', expected label, .* or null; set task\.answer_form"):
        read(rows, answer_form="roman")


def test_an_answer_that_is_no_choice_is_refused_and_a_hidden_one_is_none(read):
    rows = [{"question": f"q{at}", "choices": ["x", "y"], "answer": answer} for at, answer in enumerate("AAE")]
    with pytest.raises(ValueError, match=r"row 3: the answer .* is 'E', expected one of the 2 choices"):
        read(rows)
    rows[2]["answer"] = -1
    with pytest.raises(ValueError, match=r"row 3: .*'-1', which is no value"):
        read(rows)


def test_choices_that_are_no_list_are_refused_and_other_columns_can_be_named(read):
    for cell in (["x"], ["x", ""], 7):
        with pytest.raises(ValueError, match=r"row 1: the choices \(column options\) are no such list"):
            read([{"question": "q", "options": cell, "answer": "A"}])
    with pytest.raises(
        ValueError, match=r"row 1 has no column picks; it has question, answer; set task\.columns\.choices"
    ):
        read([{"question": "q", "answer": "A"}], columns={"choices": "picks"})
    assert (
        read([{"question": "q", "picks": ["x", "y"], "answer": "A"}], columns={"choices": "picks"}).problems[0].gold
        == "A"
    )


def test_choices_that_stand_in_the_question_are_not_asked_twice(read):
    question = "Which is even?\n(A) 3\n(B) 8"
    assert read([{"problem": question, "choices": ["3", "8"], "answer": "B"}]).problems[0].prompt == question
    row = {"q": "Even?", "choices": ["3", "8"], "answer": "B"}
    named = read([row], columns={"problem": "{q}\\n{choices}\\nOne of them."})
    assert named.problems[0].prompt == "Even?\nA) 3\nB) 8\nOne of them." and named.problems[0].gold == "B"
    bare = read([row], columns={"problem": "q"})
    assert bare.problems[0].prompt == "Even?" and bare.problems[0].golds == ("8",)


SHOTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]


@pytest.mark.parametrize("wrapped", [SHOTS, json.dumps(SHOTS), json.dumps(SHOTS, indent=1)])
def test_a_conversation_is_whole_and_the_instruction_ends_it(read, wrapped):
    task = read([{"messages": wrapped, "answer": "4"}], instruction="Box it.")
    assert task.problems[0].messages == (
        ("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?\nBox it."),
    )  # fmt: skip
    assert task.problems[0].question == "2+2?"
    assert all(message["content"] in task.problems[0].prompt for message in SHOTS)
    assert any("conversations" in note for note in task.notes)
    one = read([{"conversations": [{"from": "human", "value": "1+1?"}], "answer": "2"}])
    assert one.problems[0].prompt == "1+1?" and one.problems[0].messages is None


@pytest.mark.parametrize(
    "messages, words",
    [
        (SHOTS[:3], "last message .* is the assistant's"),
        ([{"role": "narrator", "content": "x"}, *SHOTS[3:]], "message 1 .* role 'narrator'"),
        ([{"role": "system", "content": ""}, *SHOTS[3:]], "message 1 .* no text"),
    ],
)
def test_messages_that_cannot_be_asked_are_refused(read, messages, words):
    with pytest.raises(ValueError, match=f"row 1: .*{words}"):
        read([{"prompt": messages, "answer": "2"}])


@pytest.mark.parametrize(
    "answer, right, wrong",
    [
        (json.dumps(["12", "a dozen"]), ["12", "a dozen"], ["13"]),
        (["12", "a dozen"], ["12", "a dozen"], ["13"]),
        ([12], ["12"], ["13"]),
        (json.dumps(["12", "N/A"]), ["12"], ["N/A"]),
        ("[1, 2]", ["[1, 2]"], ["1", "2"]),
        (2.5e-7, ["0.00000025"], ["2.5"]),
        (1.1 + 2.2, ["3.3"], ["3"]),
        (2 / 7, ["2/7"], ["0.3"]),
        (4e21, ["4000000000000000000000"], ["4"]),
    ],
)
def test_any_of_several_golds_is_right(read, answer, right, wrong):
    task = read([{"problem": "p", "answer": answer}])
    assert all(outcome(task, text) == "correct" for text in right)
    assert not any(outcome(task, text) == "correct" for text in wrong)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_problem_that_is_no_number_is_refused_in_one_line(read, number):
    with pytest.raises(ValueError, match=r"row 1: the problem \(column problem\) is empty, expected a text"):
        read([{"problem": number, "answer": "1"}])


def test_golds_that_disagree_are_refused_and_those_that_mean_the_same_are_not(read):
    same = {"problem": "half?", "solution": r"So \boxed{\dfrac12}.", "expected_answer": "0.5"}
    task = read([same], Latex())
    assert task.problems[0].golds == (r"\dfrac12",)
    with pytest.raises(ValueError, match=r"row 2: the golds disagree: '9' and, in column answer, '3'.*columns\.answer"):
        read([{"problem": "a", "answer": "1", "solution": r"\boxed{1}"},
              {"problem": "b", "answer": "3", "solution": r"\boxed{3}, as $3^2=\boxed{9}$"}])  # fmt: skip
    two = [{"problem": "a", "answer": "1", "ground_truth": "1"}, {"problem": "b", "answer": "2", "ground_truth": "5"}]
    with pytest.raises(ValueError, match="row 2: the golds disagree: '2' and, in column ground_truth, '5'"):
        read(two)
    assert [problem.gold for problem in read(two, columns={"answer": "ground_truth"}).problems] == ["1", "5"]
    kept = read(two, unanswered="leave_out")
    assert [problem.id for problem in kept.problems] == ["own/0"]
    assert "rows whose golds disagree are left out: 1 (2)" in kept.notes


def test_a_boxed_choice_is_right_by_its_value_and_by_its_letter(read):
    task = read([{"problem": "(A) 9 (B) 8", "solution": r"\boxed{\text{(B)}\ 8}", "answer": "8"}])
    assert [outcome(task, answer) == "correct" for answer in ("8", "B", "9", "A")] == [True, True, False, False]


@pytest.mark.parametrize(
    "none", ["NaN", "n/a", "NONE", "null", "Not Found", "Proof", r"\text{None}", "?", "  ", "[]", None]
)
def test_a_gold_that_is_none_is_no_gold(read, none):
    rows = [{"problem": "a", "expected_answer": "1"}, {"problem": "b", "expected_answer": none}]
    with pytest.raises(ValueError, match=r"row 2: the answer .*task\.unanswered=leave_out"):
        read(rows)
    task = read(rows, unanswered="leave_out")
    assert [problem.gold for problem in task.problems] == ["1"] and any(
        "left out: 1 (2)" in note for note in task.notes
    )
    with pytest.raises(ValueError, match=r"unanswered 'drop', expected refuse or leave_out; set task\.unanswered="):
        read(rows, unanswered="drop")


@pytest.mark.parametrize(
    "value", ["Na", "no solution", r"\infty", r"\emptyset", "undefined", "-1", "0", "DNE", "False"]
)
def test_words_that_are_answers_stay(read, value):
    assert read([{"problem": "a", "answer": value}]).problems[0].gold == value


TWICE = [{"uid": "a", "problem": "1+1?", "answer": "2"}, {"uid": "b", "problem": "2+2?", "answer": "4"},
         {"uid": "a", "problem": "1+1?", "answer": "2"}]  # fmt: skip


def test_repeated_problems_have_a_way_out(read):
    def ids(rows, repeats, column: str | None = "uid"):
        return [p.id for p in read(rows, repeats=repeats, columns={"id": column}).problems]

    with pytest.raises(ValueError, match=r"row 3 repeats the id 'a' of row 1.*task\.repeats=first or keep"):
        ids(TWICE, "refuse")
    assert ids(TWICE, "first") == ["a", "b"] and ids(TWICE, "keep") == ["a", "b", "a#2"]
    assert ids(TWICE, "first", None) == ["own/0", "own/1"] and ids(TWICE, "refuse", None) == ["own/0", "own/1", "own/2"]
    versions = {read(TWICE, repeats=repeats, columns={"id": "uid"}).version for repeats in ("first", "keep")}
    assert len(versions) == 2
    other = [*TWICE[:2], {**TWICE[2], "answer": "3"}]
    with pytest.raises(ValueError, match=r"row 3 repeats the problem of row 1 with the answer '3'.*'2'"):
        ids(other, "first")
    with pytest.raises(ValueError, match="row 3 repeats the id 'a' of row 1 with another problem"):
        ids([*TWICE[:2], {**TWICE[2], "problem": "3+3?"}], "first")
    with pytest.raises(ValueError, match=r"repeats 'once', expected first, refuse or keep; set task\.repeats=first"):
        ids(TWICE, "once")


def test_a_plain_file_has_no_notes_and_the_version_of_its_rows(read):
    rows = [{"id": str(at), "problem": f"What is {at}?", "answer": str(at)} for at in range(4)]
    task = read(rows)
    assert task.notes == [] and len(task.version) == 16
    assert read(rows, repeats="keep", unanswered="leave_out").version == task.version


def test_notes_are_printed_once(read, capsys):
    for _ in range(2):
        task = read([{"Body": "Only here.", "Question": "How?", "Answer": "1"}], name="printed")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"note: printed: {note}" for note in task.notes]


@pytest.mark.parametrize(
    "gold, others",
    [
        ("9 (approx.)", ["9"]),
        (r"\$1,250.00", ["1250"]),
        (r"90^\circ", ["90"]),
        (r"12\text{ cm}^2", ["12"]),
        ("x = 0.75", ["0.75", r"\frac{3}{4}"]),
        (r"-\frac{1}{8}", ["-1/8", "-0.125"]),
        ("1/3", [r"\frac{1}{3}"]),
        ("0.00002", [r"2 \times 10^{-5}"]),
        ("3e9", ["3000000000", r"3 \times 10^{9}"]),
        (r"\textbf{(D)}\ 14", ["14", "D"]),
        ("7", []),
        ("7" * 30, []),
        ("x^2", []),
        ("101_2", []),
        ("(1, 2)", []),
        (r"5\sqrt{2}", []),
        (r"50\%", []),
        ("1.2.3", []),
    ],
)
def test_other_spellings_mean_the_same(gold, others):
    assert respellings(gold) == others


def test_the_audit_finds_each_kind(read):
    rows = [
        {"id": "1", "question": "How many apples?", "answer": "9 (approx.)", "gold": "9 (approx.)"},
        {"id": "2", "question": "How many pears?", "answer": "n/a", "gold": None},
        {"id": "3", "question": "How many plums?", "answer": "4", "gold": "5"},
        {"id": "4", "question": "How  many apples ?", "answer": "9 (approx.)", "gold": ""},
        {"id": "4", "question": "How  many apples ?", "answer": "3", "gold": ""},
    ]
    settings = lenient({"unanswered": "refuse", "repeats": "refuse"})
    found = dict(audit("own", read(rows, columns={"problem": None}, **settings)).findings)
    spelled = found["spellings of golds that the grader does not take"]
    assert [line.split()[0] for line in spelled] == ["1", "4"] and all("9  for 9 (approx.)" in line for line in spelled)
    assert found["rows whose answer is no value"] == ["row 2: it is 'n/a', which is no value"]
    assert found["rows whose golds disagree"] == ["row 3: '4' and, in column gold, '5'"]
    assert found["rows that repeat a problem"] == ["row 5 repeats row 4 with the answer '3' for '9 (approx.)'"]
    assert found["problems that stand there twice (as words)"][0] == "4  is  1"
    body = read([ASDIV], columns={"problem": "Question"})
    assert dict(audit("own", body).findings) == {"columns not used that the question may need": ["body"]}


def test_the_audit_compares_splits_by_their_words(read):
    one = read([{"id": "a", "problem": "What is $1+1$?", "answer": "2"}], name="train")
    other = read([{"id": "b", "problem": "what  is 1 + 1", "answer": "2"}, {"id": "c", "problem": "2", "answer": "2"}])
    assert between({"task": one, "test": other}) == [("problems of task that are in test (as words)", ["a  is  b"])]
    assert between({"task": one, "again": one}) == []
    assert audit("own", one).findings == []


def test_the_audit_compares_prompts_where_problems_have_no_question_of_their_own():
    class Own:
        name, version, answer_start, answer_prefix = "own", "1", None, ""
        problems = (Problem("a", "1+1?", "2", True), Problem("b", "2+2?", "4", True))

        def score(self, problems, completions):
            return [Score.of("correct", text) for text in completions]

    assert audit("own", Own()).findings == []
