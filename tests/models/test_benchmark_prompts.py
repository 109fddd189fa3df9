"""GSM8K, MATH-500 and AIME as instruct models are asked them, with published tokenizers: the family's template, thinking on
or off, the answer's format; and what such a model answers is graded."""

import json

import pytest
from hydra import compose, initialize_config_dir
from places import CONF
from real_tokenizers import real

from ngrpo.cli.identity import register_resolvers
from ngrpo.composed import tasks
from ngrpo.models.prompting import Prompting
from ngrpo.targets import SettingsError

# benchmark: (the file that it reads, a row with the columns of the published set, its gold)
ROWS = {
    "gsm8k": ("gsm8k_test", {"question": "Ann has 3 figs and 69 dates. How many?", "answer": "3+69=<<3+69=72>>72\n#### 72"}),
    "math500": ("math500", {"problem": "Find $\\frac{1}{2}+\\frac{1}{4}$.", "solution": "", "answer": "\\frac{3}{4}"}),
    "aime25": ("aime25", {"problem": "Find the remainder of $2^{10}$ by $1000$.", "answer": "24", "id": "0"}),
}  # fmt: skip
GOLDS = {"gsm8k": "72", "math500": "\\dfrac34", "aime25": "024"}  # as a model may write them
ASKED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
# (tokenizer, form): what stands before and after the problem, and the delimiter of the thinking part
FORMS = {
    ("qwen", "chat"): ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "</think>"),
    ("qwen", "no_thinking"): (
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", None,
    ),
    # The published files of this tokenizer put no begin-of-text token in front.
    ("deepseek", "r1"): (USER, f"{ASSISTANT}<think>\n", "</think>"),
    ("llama", "plain"): ("<|begin_of_text|>", "", None),
}  # fmt: skip
MARKS = {  # one token each, as the model was trained on
    "qwen": ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "deepseek": (USER, ASSISTANT),
    "llama": ("<|begin_of_text|>",),
}


def benchmark(name, answer_start, place):
    """The benchmark as its YAML builds it, with one problem."""
    file, row = ROWS[name]
    (place / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    register_resolvers()
    words = [
        "model=tiny",
        f"benchmark=[{name}]",
        f"paths.data={place}",
        f"model.answer_start='{answer_start}'" if answer_start else "model.answer_start=null",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=words)
    return tasks(config)[name]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", FORMS, ids="-".join)
def test_a_problem_is_asked_as_the_model_was_trained_to_be_asked(family, name, tmp_path):
    (tokenizer_name, form), (before, after, delimiter) = family, FORMS[family]
    tokenizer, task = real(tokenizer_name), benchmark(name, delimiter, tmp_path)
    (problem,) = task.problems
    text = next(str(ROWS[name][1][column]) for column in ("question", "problem") if column in ROWS[name][1])
    (ids,) = Prompting(form, delimiter).encode(tokenizer, [problem.messages or problem.prompt])
    assert tokenizer.decode(ids) == f"{before}{text}{ASKED}{after}"
    tokens = tokenizer.convert_ids_to_tokens(ids)
    for mark in MARKS[tokenizer_name]:
        assert tokens.count(mark) == f"{before}{after}".count(mark), f"{mark} is one token, as often as it is written"


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", FORMS, ids="-".join)
def test_its_answer_is_graded_in_the_format_that_it_was_asked_for(family, name, tmp_path):
    delimiter = FORMS[family][2]
    task = benchmark(name, delimiter, tmp_path)
    thoughts = f"I try \\boxed{{7}} first.\n{delimiter}\n\n" if delimiter else "I try 7 first.\n"
    answers = [f"{thoughts}So it is \\boxed{{{value}}}." for value in (GOLDS[name], "7")]
    unfinished = "It may be \\boxed{" + GOLDS[name] + "}" if delimiter else f"It is {GOLDS[name]}"
    scores = task.score(list(task.problems) * 3, [*answers, unfinished])
    assert [score.outcome for score in scores] == ["correct", "wrong", "unparsed"]


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_a_template_that_cannot_turn_thinking_off_is_told(name):
    with pytest.raises(SettingsError, match=r"no_thinking: .* no enable_thinking; model.prompt=chat$"):
        Prompting("no_thinking", None).encode(real(name), ["Two?"])


def test_a_delimiter_that_no_answer_would_have_is_refused():
    with pytest.raises(SettingsError, match=r"^model.answer_start=</think>: must be null.*model.answer_start=null$"):
        Prompting("no_thinking", "</think>")
