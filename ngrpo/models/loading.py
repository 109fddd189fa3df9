"""A model and its tokenizer from a directory or the hub, and what strategies may know of its tokens."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ngrpo.models import architectures, attention, causal, files
from ngrpo.models.causal import CausalModel
from ngrpo.models.pieces import pieces
from ngrpo.rollout.records import Vocabulary
from ngrpo.rundir.files import write_atomically
from ngrpo.targets import SettingsError

# Parameters: a smaller model is compared with that of transformers in half a second (268 million: 1.4 s on one core).
COMPARED_FROM = 10**8


def load(
    path: str,
    dtype: str = "float32",
    precision: str = "float32",
    *,
    lora: Mapping[str, Any] | None = None,
    recompute: bool = False,
    trust_remote_code: bool = False,
) -> CausalModel:
    """The model at a local directory or hub id: safetensors only, and no remote code unless it is asked for.

    Raises ValueError where the architecture is not supported, before weights are read, and where it needs weights that
    the checkpoint lacks.
    """
    transformers_logging.disable_progress_bar()
    config = read_config(path, trust_remote_code)
    with _told(path):
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
            str(files.directory(path) or path),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            config=config,
            key_mapping=architectures.TEXT_WEIGHTS,
        )
    if report["missing_keys"]:
        raise SettingsError(f"model.path={path}: the checkpoint lacks {sorted(report['missing_keys'])[:3]}")
    mark = _comparison(path, dtype) if model.num_parameters() >= COMPARED_FROM else None
    known = mark is not None and mark.is_file() and mark.read_bytes() == mark.name.encode()
    made = CausalModel(model.eval(), precision, lora, recompute, compared=known)
    if mark is not None and not known:
        with suppress(OSError):  # a cache that cannot be written to is none
            write_atomically(mark, mark.name.encode())
    return made


def _comparison(path: str, dtype: str) -> Path | None:
    """The file that says, by its name, that these weights were compared with what these versions of transformers and torch
    and of our own code make of them; None for a hub id, behind which the weights may change."""
    if files.directory(path) is None:
        return None
    own = [Path(module.__file__ or "").read_bytes() for module in (attention, causal)]
    words = [files.fingerprint(path), dtype, transformers.__version__, torch.__version__]
    digest = blake2b(b"\0".join([*own, *(word.encode() for word in words)]), digest_size=16).hexdigest()
    return Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "compared" / digest


def read_config(path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration at a local directory or hub id, of a multimodal model that of its text model.

    Raises ValueError where it cannot be had, and for an architecture that is not supported.
    """
    try:
        with _told(path):
            whole = AutoConfig.from_pretrained(str(files.directory(path) or path), trust_remote_code=trust_remote_code)
    except SettingsError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        reason = "its config.json is neither here nor on a hub that can be reached"
        raise SettingsError(f"model.path={path}: {reason}; model.path=<directory>") from error
    if refusal := architectures.refusal(whole.to_dict(), trust_remote_code):
        raise SettingsError(f"model.path={path}: {refusal}; choose another model")
    if whole.model_type not in architectures.MULTIMODAL:
        return whole
    text = whole.get_text_config()
    text.tie_word_embeddings = whole.tie_word_embeddings  # transformers heeds that of the whole
    return text


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model."""
    with _told(path):
        return AutoTokenizer.from_pretrained(str(files.directory(path) or path), trust_remote_code=trust_remote_code)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """What transformers cannot load, in one line: of a damaged directory it raises whatever its damage leads to."""
    try:
        yield
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(
            f"model.path={path}: transformers cannot load it ({told[:300]}); choose another model"
        ) from error


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    model: CausalModel,
    answer_start: str | None,
    answer_prefix: str,
    stop: Sequence[int | str] = (),
) -> Vocabulary:
    """What strategies may know of the tokens. Added tokens count as reserved even where they are not special.

    stop: what ends an answer besides the end-of-text tokens, as ids or texts. A text that is an added token is its id.
    Raises ValueError where nothing ends a text, or where an id is none of the tokenizer's.
    """
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    configured = model.model.generation_config.eos_token_id
    named = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    asked = [named.get(one, one) if isinstance(one, str) else one for one in stop]
    stops = configured if isinstance(configured, list) else [] if configured is None else [configured]
    if odd := [one for one in stops if not isinstance(one, int)]:
        raise SettingsError(f"generation_config.json: eos_token_id={odd[0]!r} is no token id; choose another model")
    stops = {token for token in (*stops, *asked, tokenizer.eos_token_id) if isinstance(token, int)}
    if not stops:
        raise SettingsError(
            "neither the tokenizer nor generation_config.json names an end-of-text token; set model.stop"
        )
    if wrong := [token for token in asked if isinstance(token, int) and not 0 <= token < len(tokenizer)]:
        raise SettingsError(f"model.stop={wrong}: the tokenizer has the ids 0 to {len(tokenizer) - 1}")
    start = tuple(tokenizer.encode(answer_start, add_special_tokens=False)) if answer_start else ()
    pad: Any = tokenizer.pad_token_id
    ends = stops if pad is None else stops | {pad}
    return Vocabulary(
        size=len(tokenizer),
        reserved=tuple(sorted(added)),
        stops=tuple(sorted(stops)),
        answer_start=start,
        answer_prefix=tuple(tokenizer.encode(answer_prefix, add_special_tokens=False)) if answer_prefix else (),
        pieces=pieces(tokenizer, ends - set(start)),  # a delimiter that also pads is looked for all the same
        delimiter=answer_start or "",
        stop_texts=tuple(dict.fromkeys(one for one in asked if isinstance(one, str))),
    )
