"""What is known of a model from its files before it is loaded: where it is, whether it is complete, tokens, positions.

It imports no torch, so that a command line is refused at once.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from ngrpo.models import architectures
from ngrpo.rundir.schema import Unreadable, check_files, read_run

BUNDLED = {"ngrpo:tiny": Path(__file__).resolve().with_name("tiny_qwen2")}  # models that come with the package, by name
FINGERPRINTED = 2**24  # bytes of each file: enough to reach the weights after any header
# Settings of a run's model that its evaluation keeps, and their types.
PROMPT_SETTINGS: dict[str, Any] = {"prompt": str, "answer_start": str | None, "stop": list}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def directory(path: str) -> Path | None:
    """The directory of a bundled model or at a path; None where there is none."""
    place = BUNDLED.get(path) or Path.cwd() / Path(path).expanduser()
    return place if place.is_dir() else None


def fingerprint(path: str) -> str:
    """Identifies the weights in a model directory: a digest of config.json and of the first bytes and size of every
    safetensors file, which is fast for large models too. A hub id is its own fingerprint."""
    place = directory(path)
    if place is None:
        return path
    digest = blake2b(digest_size=8)
    for file in sorted([place / "config.json", *place.glob("*.safetensors")]):
        if file.is_file():
            with open(file, "rb") as content:
                digest.update(f"{file.name} {file.stat().st_size} ".encode() + content.read(FINGERPRINTED))
    return digest.hexdigest()


def trimmed(path: str) -> dict[str, Any] | None:
    """What config.json of a model directory says about a vocabulary cut by models.trim, before training or after."""
    place = directory(path)
    found = text_settings(place).get("trimmed") if place else None
    return found if isinstance(found, dict) else None


def cached(name: str, kind: str) -> bool:
    """Whether this machine's hub cache holds a repository (kind: model, with weights, or dataset); offline."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "snapshots")
    return any(place.glob("*/*.safetensors" if kind == "model" else "*/*"))


def refusal(path: Any, trusted: bool = False) -> str | None:
    """Why no model can be loaded from `path`, as a phrase; None where nothing is wrong or it is a hub id.

    trusted: Python code that comes with it may run.
    """
    if not isinstance(path, str) or not path or not path.isprintable():
        return "must be a directory or a hub id such as Qwen/Qwen3-1.7B-Base"
    place = directory(path)
    if place is None:
        owner = path.partition("/")[0]
        if HUB_ID.fullmatch(path) and ".." not in path and directory(owner) is None:
            return None
        return "is no directory, and no hub id such as Qwen/Qwen3-1.7B-Base"
    if (place / "adapter_config.json").exists() and not (place / "adapter_model.safetensors").is_file():
        return "has an adapter without adapter_model.safetensors, and weights in pickles are not loaded"
    settings = _json(place / "config.json")
    if not isinstance(settings, dict):
        return "the directory has no readable config.json, so it holds no Hugging Face model"
    if other := architectures.refusal(settings, trusted):
        return other
    if not (place / "tokenizer.json").is_file() and not (place / "tokenizer_config.json").is_file():
        return "the directory has neither tokenizer.json nor tokenizer_config.json"
    if (place / "tokenizer.json").is_file() and tokenizer(place) is None:
        return "its tokenizer.json cannot be read"
    return _tokens_refusal(place) or _weights_refusal(place)


def run_refusal(run: Any, trust_changed: bool) -> str | None:
    """Why a finished run's model cannot be evaluated from the directory `run`, as a phrase; None where it can."""
    if not isinstance(run, str) or not Path(run).is_dir():
        return "is no directory"
    try:
        read_run(run, trust_changed=trust_changed)
    except Unreadable as error:
        return " ".join(str(error).removeprefix(f"{run} ").split())
    if not Path(run, "hf").is_dir():
        return "holds no hf/ with a model: the run has not finished, or somebody took it away"
    inner = refusal(str(Path(run, "hf").absolute()))
    return f"hf/: {inner}" if inner else None


def prompt_settings(run: str, trust_changed: bool) -> dict[str, Any]:
    """How the model of a finished run was prompted, which its evaluation repeats. Raises Unreadable."""
    record = read_run(run, trust_changed=trust_changed)
    if not trust_changed:
        check_files(record, "hf/")
    found = {key: value for key, value in record.config.get("model", {}).items() if key in PROMPT_SETTINGS}
    wrong = [key for key, value in found.items() if not isinstance(value, PROMPT_SETTINGS[key])]
    stops = found.get("stop", [])
    wrong += ["stop"] if isinstance(stops, list) and not all(isinstance(one, (int, str)) for one in stops) else []
    if "${" in json.dumps(found):  # it would be resolved on the machine of whoever evaluates the run
        raise Unreadable(f"{run}/run.json is damaged (model holds an interpolation, and a run writes none)")
    if wrong:
        raise Unreadable(f"{run}/run.json is damaged (model.{wrong[0]} is {json.dumps(found[wrong[0]])[:40]})")
    return found


@lru_cache
def tokenizer(place: Path) -> Tokenizer | None:
    """The tokenizer of a model directory; None where it has no readable tokenizer.json."""
    try:
        return Tokenizer.from_file(str(place / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - the Rust side raises nothing narrower, for a missing as for a broken file
        return None


def ordinary_tokens(place: Path) -> int | None:
    """How many tokens may be neighbors: neither special nor added, with a row in the table. None: unknown."""
    own, size = tokenizer(place), rows(place)
    if own is None:
        return None
    added = set(own.get_added_tokens_decoder())
    return sum(1 for row in set(own.get_vocab().values()) - added if size is None or row < size)


def rows(place: Path) -> int | None:
    """How many tokens the embedding table has; None where config.json does not say."""
    number = text_settings(place).get("vocab_size")
    return number if isinstance(number, int) else None


def positions(place: Path) -> int | None:
    """How many tokens a text may have; None where config.json does not say."""
    return architectures.positions(text_settings(place))


def text_settings(place: Path) -> Mapping[str, Any]:
    """What config.json of a model directory says about the text model; empty where there is none."""
    settings = _json(place / "config.json")
    return architectures.text_config(settings) if isinstance(settings, dict) else {}


def _tokens_refusal(place: Path) -> str | None:
    """Refuses ordinary tokens without a row, and end-of-text ids that are no ids. Added tokens may lack a row, as the image
    token in Gemma's text models does; a prompt that has such a token is refused."""
    own, size = tokenizer(place), rows(place)
    if own is not None and size is not None:
        added = own.get_added_tokens_decoder()
        most = max((row for row in own.get_vocab().values() if row not in added), default=0)
        if most >= size:
            return f"its tokenizer.json has tokens up to {most}, and by config.json its table ends at {size - 1}"
    settings = _json(place / "generation_config.json")
    ends = settings.get("eos_token_id") if isinstance(settings, dict) else None
    ends = ends if isinstance(ends, list) else [ends]
    if invalid := [end for end in ends if end is not None and type(end) is not int]:
        return f"its generation_config.json says eos_token_id={json.dumps(invalid[0])[:40]}, which is no token id"
    return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _weights_refusal(place: Path) -> str | None:
    index = _json(place / "model.safetensors.index.json")
    named = index.get("weight_map") if isinstance(index, dict) else None
    shards = {str(name) for name in named.values()} if isinstance(named, dict) else set()
    files = [place / name for name in sorted(shards)] or sorted(place.glob("*.safetensors"))
    if not files:
        other = any(place.glob("*.bin")) or any(place.glob("*.pt"))
        return f"the directory has no *.safetensors{', and weights in pickles are not loaded' if other else ''}"
    for file in files:
        try:
            with safe_open(file, framework="numpy"):  # which refuses one that is not as long as its header says
                pass
        except (OSError, SafetensorError):
            return f"{file.name} is missing or cut off"
    return None
