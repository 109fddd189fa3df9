"""Files that somebody sent, or a disk spoilt: whatever they hold, a command ends in one line that names the cause.

Nothing in them runs, nothing of this machine is read into what is written, nothing takes minutes.
"""

import itertools
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import warm

TINY = warm.REPOSITORY / "ngrpo" / "models" / "tiny_qwen2"
SHORT = ["benchmark=story_math", "n=1", "problems=1", "max_new_tokens=4", "trainer=smoke", "steps=1",
         "evaluation.before=false", "trainer.threads=1"]  # fmt: skip
ROW = {"question": "What is 1 + 1?", "answer": "2"}
Build = Callable[[Path], list[str]]


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/ngrpo_was_here"),))


def model(change: Callable[[Path], object], *more: str) -> Build:
    """The bundled model's directory with something changed."""

    def build(place: Path) -> list[str]:
        change(Path(shutil.copytree(TINY, place / "model")))
        return ["train.py", f"model={place / 'model'}", *SHORT, *more]

    return build


def config(**changes: object) -> Build:
    def change(place: Path) -> None:
        content = json.loads((place / "config.json").read_text()) | changes
        (place / "config.json").write_text(json.dumps(content))

    return model(change)


def write(name: str, content: bytes | str, *more: str) -> Build:
    data = content.encode() if isinstance(content, str) else content
    return model(lambda place: (place / name).write_bytes(data), *more)


def edit(name: str, **changes: object) -> Build:
    def change(place: Path) -> None:
        (place / name).write_text(json.dumps(json.loads((place / name).read_text()) | changes))

    return model(change)


def template(text: str) -> Build:
    def build(place: Path) -> list[str]:
        (Path(shutil.copytree(TINY, place / "model")) / "chat_template.jinja").write_text(text)
        (place / "own.jsonl").write_text(json.dumps(ROW))
        asked = ["model.prompt=chat", "model.stop=[1]", "task=jsonl", f"task.path={place / 'own.jsonl'}"]
        return ["train.py", f"model={place / 'model'}", *SHORT, *asked]

    return build


def data(content: bytes | str, name: str = "own.jsonl") -> Build:
    def build(place: Path) -> list[str]:
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return ["train.py", "task=jsonl", f"task.path={place / name}", *SHORT]

    return build


def parquet(rows: list[dict]) -> Build:
    def build(place: Path) -> list[str]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "own.parquet")
        return ["train.py", "task=jsonl", f"task.path={place / 'own.parquet'}", *SHORT]

    return build


def yaml(content: str, name: str = "exploration/own.yaml", *more: str) -> Build:
    def build(place: Path) -> list[str]:
        path = place / "conf" / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
        return ["train.py", f"--config-dir={place / 'conf'}", *(more or ("exploration=own",)), *SHORT]

    return build


def record(content: bytes | str | dict, script: str = "evaluate.py") -> Build:
    """A run directory that somebody sent: a model that loads, and this run.json."""

    def build(place: Path) -> list[str]:
        shutil.copytree(TINY, place / "sent" / "hf")
        text = json.dumps({"status": "finished", "config": {}} | content) if isinstance(content, dict) else content
        (place / "sent" / "run.json").write_bytes(text.encode() if isinstance(text, str) else text)
        if script == "train.py":
            return [script, *SHORT, f"hydra.run.dir={place / 'sent'}"]
        if script == "report.py":
            return [script, f"runs={place / 'sent'}"]
        return [script, f"run={place / 'sent'}", "n=1", "problems=1", "benchmark=story_math", "max_new_tokens=4"]

    return build


def samples(content: bytes | str, name: str = "sent.jsonl") -> Build:
    def build(place: Path) -> list[str]:
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return ["report.py", f"samples=[theirs={place / name}]", f"out={place / 'report'}"]

    return build


def bomb(depth: int, width: int = 9) -> str:
    names = [f"a{level}" for level in range(depth)]
    first = f"{names[0]}: &{names[0]} [{','.join('x' * width)}]\n"
    return first + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * width)}]\n" for a, b in itertools.pairwise(names))


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


# Nothing of these is read where a tokenizer.json stands beside them.
HARMLESS = ("tokenizer class of nobody", "tokenizer with code")
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
HEADER = json.dumps(
    {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}
).encode()
LINES = [json.dumps(ROW)] * 3
HOSTILE: dict[str, Build] = {
    # models
    "config of a list": write("config.json", "[]"),
    "config cut": write("config.json", '{"model_type": "qwen2", '),
    "config empty": write("config.json", ""),
    "config binary": write("config.json", bytes(range(256))),
    "config deep": write("config.json", "[" * 100_000),
    "config without a type": config(model_type=None),
    "config of another type": config(model_type="../../etc/passwd"),
    "config with a vocabulary of text": config(vocab_size="many"),
    "config with a negative vocabulary": config(vocab_size=-5),
    "config with a huge vocabulary": config(vocab_size=2**50),
    "config with heads that do not divide": config(num_attention_heads=7),
    "config with no layers": config(num_hidden_layers="two"),
    "config with more layers than weights": config(num_hidden_layers=9),
    "config with code": config(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
    "weights empty": write("model.safetensors", b""),
    "weights with a header beyond the file": write("model.safetensors", safetensors(b"{}", 2**60)),
    "weights with a shape beyond the file": write("model.safetensors", safetensors(HEADER) + bytes(8)),
    "weights of nothing": write("model.safetensors", safetensors(b"{}")),
    "weights a pickle": model(lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin")),
    "weights a pickle by their name": write("model.safetensors", pickle.dumps(Evil())),
    "weights in shards that are not there": write(
        "model.safetensors.index.json", json.dumps({"weight_map": {"x": "../../../etc/passwd"}})
    ),
    "an index of a list": model(
        lambda place: [
            (place / "model.safetensors").unlink(),
            (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": [1]})),
        ]
    ),
    "an adapter a pickle": model(
        lambda place: [
            (place / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/etc"}'),
            (place / "adapter_model.bin").write_bytes(pickle.dumps(Evil())),
        ]
    ),
    "an adapter without a model": model(
        lambda place: [
            (place / "config.json").unlink(),
            (place / "adapter_config.json").write_text("{}"),
            (place / "adapter_model.bin").write_bytes(pickle.dumps(Evil())),
        ]
    ),
    # tokenizers
    "tokenizer cut": model(
        lambda place: (place / "tokenizer.json").write_bytes((place / "tokenizer.json").read_bytes()[:999])
    ),
    "tokenizer of a list": write("tokenizer.json", "[]"),
    "tokenizer settings of a list": write("tokenizer_config.json", "[]"),
    "tokenizer settings binary": write("tokenizer_config.json", bytes(range(256))),
    "tokenizer class of nobody": edit("tokenizer_config.json", tokenizer_class="EvilTokenizer"),
    "tokenizer with code": edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T"),
    "generation settings of a list": write("generation_config.json", "[]"),
    "generation stops of text": write("generation_config.json", '{"eos_token_id": "x"}'),
    # chat templates
    "template without end": template(LOOP),
    "template that reaches for Python": template("{{ ().__class__.__base__.__subclasses__() }}"),
    "template that does not parse": template("{% for %}"),
    "template that divides by zero": template("{{ 1 / 0 }}"),
    "template that reads a file": template("{% include '/etc/passwd' %}"),
    "template of endless calls": template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    "template with a long range": template("{% for a in range(10 ** 12) %}x{% endfor %}"),
    "template that leaves all out": template("hello"),
    # data
    "data empty": data(""),
    "data binary": data(bytes(range(256)) * 9),
    "data a directory": lambda place: ["train.py", "task=jsonl", f"task.path={place}", *SHORT],
    "data of numbers": data("1\n2\n"),
    "data deep": data("[" * 100_000 + "\n"),
    "data a list": data(json.dumps([ROW])[:-1]),
    "data cut": data("\n".join([*LINES, '{"question": "Wh'])),
    "data with a number too long": data(json.dumps(ROW)[:-2] + '", "x": ' + "9" * 6000 + "}"),
    "data with empty questions": data('{"question": "", "answer": "2"}\n'),
    "data of columns of nobody": data('{"a": 1, "b": 2}\n'),
    "data a pickle": data(pickle.dumps(Evil()), "own.pkl"),
    "data a pickle by its name": data(pickle.dumps(Evil())),
    "parquet by its name": data("PAR1" + "x" * 30, "own.parquet"),
    "parquet cut": data(b"PAR1", "own.parquet"),
    "parquet of nothing": parquet([{"question": None, "answer": None}]),
    "parquet of lists": parquet([{"question": [[1]], "answer": {"a": 1}}]),
    # configuration files
    "yaml bomb": yaml(bomb(9)),
    "yaml within itself": yaml("a: &a [*a]\n"),
    "yaml deep": yaml("[" * 5_000),
    "yaml with a python object": yaml("_target_: !!python/object/apply:os.system ['touch /tmp/ngrpo_was_here']\n"),
    "yaml of a target outside": yaml("_target_: os.system\ncommand: touch /tmp/ngrpo_was_here\n"),
    "yaml of an inner target outside": yaml(
        "_target_: ngrpo.exploration.token_sampling.TokenSampling\ntop_p:\n  _target_: subprocess.getoutput\n  cmd: id\n"
    ),
    "yaml binary": yaml("\x00\x01\x02"),
    "yaml of a list": yaml("- 1\n"),
    "yaml that names itself": yaml("defaults: [own]\n"),
    "yaml that climbs": yaml("defaults: [../../../../etc/passwd]\n"),
    # run directories
    "run binary": record(bytes(range(256))),
    "run of a list": record("[]"),
    "run deep": record("[" * 100_000),
    "run with a secret": record({"config": {"model": {"answer_start": "${oc.env:NGRPO_TEST_SECRET}"}}}),
    "run with a secret in a list": record({"config": {"model": {"stop": ["\\${oc.env:NGRPO_TEST_SECRET}"]}}}),
    "run with a prompt of nobody": record({"config": {"model": {"prompt": "evil"}}}),
    "run with a prompt of a list": record({"config": {"model": {"prompt": [1]}}}),
    "run with stops of a mapping": record({"config": {"model": {"stop": {"a": 1}}}}),
    "run with a path for a step": record({"config": {"steps": "../../../../tmp/x"}}),
    "run with a negative step": record({"config": {"steps": -3}}),
    "run with a number for its data": record({"data": 3}),
    "run with a model of text": record({"config": {"model": "x"}}),
    "run of another kind": record({"kind": "../.."}),
    "run that failed for a mapping": record({"status": "failed", "reason": {"a": 1}}, "report.py"),
    "run of a hash of its own": record({"status": "running", "config_hash": "x", "earlier": 3}, "train.py"),
    "run of checksums of text": record({"checksums": {"../../x": 3}}, "report.py"),
    "run without samples": record({"seed": 1}, "report.py"),
    "run without a seed": record({"status": "finished"}, "report.py"),
    # result files of others
    "samples empty": samples(""),
    "samples binary": samples(bytes(range(256)) * 9),
    "samples deep": samples("[" * 100_000),
    "samples of numbers": samples("1\n2\n"),
    "samples cut": samples('{"id": 1, "correct": true}\n{"id": 1, "corr'),
    "samples a pickle": samples(pickle.dumps(Evil()), "sent.pt"),
    "samples parquet by their name": samples("PAR1" + "x" * 30, "sent.parquet"),
    "samples with verdicts of nobody": samples('{"id": 1, "correct": "perhaps"}\n'),
    "samples without verdicts": samples('{"id": 1, "text": "a"}\n'),
    "samples counted beyond their number": samples('{"id": 1, "n": 4, "c": 5}\n'),
    "samples counted below nothing": samples('{"id": 1, "n": -4, "c": -5}\n'),
    "samples counted in text": samples('{"id": 1, "n": "many", "c": 1}\n'),
    "samples csv with ragged rows": samples("id,correct\n1,1,1,1\n2\n", "sent.csv"),
}  # fmt: skip


def test_the_list_is_long():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("build", HOSTILE.values(), ids=HOSTILE)
def test_one_line_and_no_traceback(tmp_path, monkeypatch, build):
    monkeypatch.setenv("NGRPO_TEST_SECRET", "kept to oneself")
    canary = Path("/tmp/ngrpo_was_here")
    canary.unlink(missing_ok=True)
    script, *words = build(tmp_path)
    out = (
        [] if script == "report.py" or any(word.startswith("hydra.run.dir=") for word in words) else [tmp_path / "out"]
    )
    process = warm.start(script, tmp_path / "log", *words, *(f"hydra.run.dir={place}" for place in out))
    process.join(timeout=60)
    assert not process.is_alive(), "takes minutes"
    text = (tmp_path / "log").read_text()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text, text
    if build in map(HOSTILE.get, HARMLESS):
        assert process.exitcode == 0 and not lines, text
        return
    assert process.exitcode in (1, 2) and len(lines) == 1, f"{process.exitcode}\n{text}"
    assert len(lines[0]) <= 700 and lines[0].isprintable(), lines[0]
    assert not canary.exists() and "kept to oneself" not in text
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", ".csv", ".md")
    ]
    assert not any(b"kept to oneself" in path.read_bytes() for path in written)
