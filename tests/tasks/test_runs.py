"""Real tasks on the command line: own files train and are evaluated, long prompts are left out and counted."""

import json

import pytest
import warm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ngrpo.rundir.schema import config_hash

WORDS = "How many apples are left when half of the basket is eaten by a friend of the farmer who sells them"


def row(at, words=WORDS):
    return {
        "id": f"p/{at}",
        "problem": f"{words} in ${at}$ days, {at * 7} hours and {at * at} minutes?",
        "answer": str(at),
    }


def write(place, rows):
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random Qwen2 with byte-level words, a training file and benchmarks in one directory."""
    directory = tmp_path_factory.mktemp("own")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([row(at)["problem"] for at in range(20)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=160, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    write(directory / "train.jsonl", [row(at) for at in range(12)] + [row(99, WORDS * 9)])
    write(directory / "aime25.jsonl", [row(at) for at in range(10, 14)] + [row(98, WORDS * 9)])
    write(directory / "math500.jsonl", [row(3, "An entirely different question about rabbits and hats")])
    return directory


def run(script, *arguments):
    return warm.run(f"{script}.py", *arguments)


def test_own_files_train_and_are_evaluated(place, tmp_path):
    out = tmp_path / "run"
    done = run(
        "train", f"model={place}/model", "task=jsonl", f"task.path={place}/train.jsonl", "benchmark=[aime25,math500]",
        f"paths.data={place}", "steps=1", "prompts_per_step=2", "group_size=2", "max_new_tokens=8", "n=2",
        f"hydra.run.dir={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["left_out"] == {"training": 1, "aime25": 1}
    assert record["overlap"]["aime25"]["exact"] == 2 and record["overlap"]["math500"] == {"exact": 0, "near": 0}
    results = json.loads((out / "results.json").read_text())
    assert {name: results[name]["1"]["n_problems"] for name in results} == {"aime25": 4, "math500": 1}
    assert set(record["data"]) == {"own", "aime25", "math500", "model"}


def test_files_and_models_may_move_and_the_run_is_the_same():
    def identity(path):
        node = {"_target_": "ngrpo.tasks.questions.Questions", "path": path, "directory": None}
        return config_hash({"seed": 0, "task": node, "benchmark": {"a": node}}, {"own": "1"})

    assert identity("/a/train.jsonl") == identity("/b/train.jsonl")
    weights = {"model": "0a"}
    assert config_hash({"model": {"path": "a"}}, weights) == config_hash({"model": {"path": "b"}}, weights)
    assert config_hash({"model": {"path": "a"}}, weights) != config_hash({"model": {"path": "a"}}, {"model": "0b"})


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["task=jsonl"], "task.path"),
        (["task=jsonl", "task.path=/nowhere.jsonl"], "/nowhere.jsonl: there is no such file; set task.path"),
        (["benchmark=jsonl", "benchmark.path=/nowhere.jsonl"], "set benchmark.jsonl.path"),
        (["benchmark=aime24", "paths.data={place}"], "set benchmark.aime24.path"),
        (["task=reasoning_gym", "task.puzzle=puzzle24"], "puzzle24"),
        (["task=gsm8k", "task.grader._target_=ngrpo.tasks.questions.Questions"], "ngrpo.grading"),
        (["task=jsonl", "task.path={place}/train.jsonl", "prompts_per_step=14"], "prompts_per_step=13"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(place, tmp_path, arguments, words):
    filled = [argument.format(place=place) for argument in arguments]
    done = run("train", *filled, f"hydra.run.dir={tmp_path}/none")
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("model.stop=[99999]", "model.stop=[99999]: the tokenizer has the ids 0 to "),
        (
            "model.prompt=chat task=jsonl task.path={place}/train.jsonl",
            "model.prompt=chat: the tokenizer has no chat template",
        ),
        ("model.lora.r=2 model.lora.target_modules=[embed_tokens]", "the embedding and the head take no adapters"),
    ],
)
def test_what_only_the_model_and_its_tokenizer_tell_is_one_line_too(place, tmp_path, words, told):
    own = [word.format(place=place) for word in words.split()]
    done = run("train", "trainer=smoke", "benchmark=story_math", *own, f"hydra.run.dir={tmp_path}/run")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(lines) == 1 and told in lines[0], done.stderr


def test_a_task_of_prompts_of_its_own_needs_no_chat_template(tmp_path):
    words = ["trainer=smoke", "steps=1", "trainer.threads=1", "benchmark=story_math", "model.prompt=chat"]
    done = run("train", *words, "max_new_tokens=8", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr


def test_the_audit_lists_what_its_grader_does_not_find(place):
    done = run("audit", "task=countdown", "task.size=20", "benchmark=jsonl", f"benchmark.path={place}/train.jsonl")
    assert done.returncode == 0, done.stderr
    assert "13 of 13 correct" in done.stdout and "20 of 20 correct" in done.stdout
    write(place / "odd.jsonl", [row(1), {"id": "odd", "problem": "Which?", "answer": "a } b"}])
    done = run("audit", "benchmark=jsonl", f"benchmark.path={place}/odd.jsonl")
    assert "1 of 2 correct" in done.stdout and "odd  unparsed  a } b" in done.stdout


def test_the_audit_ends_with_1_where_it_finds_something(place):
    rows = [row(1), {"id": "none", "problem": "Which?", "answer": "notfound"}, row(2), row(2)]
    write(place / "faults.jsonl", rows)
    done = run("audit", "benchmark=jsonl", f"benchmark.path={place}/faults.jsonl")
    assert done.returncode == 1 and "2 findings" in done.stderr, done.stderr
    assert "row 2: it is 'notfound'" in done.stdout and "row 4 repeats row 3" in done.stdout
    write(place / "tale.jsonl", [{"problem": "Who?", "tale": "Ann met Bob at noon.", "answer": "1"}])
    done = run("audit", "task=jsonl", f"task.path={place}/tale.jsonl")
    assert done.returncode == 1 and "1 of 1 correct" in done.stdout and "may need tale" in done.stdout
    done = run("audit", "task=jsonl", f"task.path={place}/tale.jsonl", "task.columns.problem={tale} {problem}")
    assert done.returncode == 0, done.stderr
    done = run("audit", "task=jsonl", "task.path=/nowhere.jsonl")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such file" in done.stderr


def test_conversations_are_asked_in_a_chat_template_alone(place):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    write(place / "talk.jsonl", [{"prompt": messages, "answer": "2"}])
    done = run("train", f"model={place}/model", "task=jsonl", f"task.path={place}/talk.jsonl", "prompts_per_step=1")
    assert done.returncode == 2 and "task has conversations" in done.stderr and "model.prompt=chat" in done.stderr
