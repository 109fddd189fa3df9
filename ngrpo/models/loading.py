"""Loads a model and its tokenizer from a directory or the hub, and makes the vocabulary that strategies know."""

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

# Parameters from which on a comparison is remembered: a smaller model takes half a second (268 million: 1.4 s on one core).
REMEMBERED_FROM = 10**8


def load(
    path: str,
    dtype: str = "float32",
    precision: str = "float32",
    *,
    lora: Mapping[str, Any] | None = None,
    recompute: bool = False,
    trust_remote_code: bool = False,
) -> CausalModel:
    """The model at a local directory or hub id: from safetensors only, and without remote code unless that is trusted.

    Raises ValueError where the architecture is not supported, before weights are read, and where the checkpoint lacks
    weights.
    """
    transformers_logging.disable_progress_bar()
    config = read_config(path, trust_remote_code)
    with _loading(path):
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
    mark = _comparison_mark(path, dtype) if model.num_parameters() >= REMEMBERED_FROM else None
    compared = mark is not None and mark.is_file() and mark.read_bytes() == mark.name.encode()
    loaded = CausalModel(model.eval(), precision, lora, recompute, compared)
    if mark is not None and not compared:
        with suppress(OSError):  # where the cache cannot be written to, the model is compared every time
            write_atomically(mark, mark.name.encode())
    return loaded


def _comparison_mark(path: str, dtype: str) -> Path | None:
    """The file that exists once these weights were compared, under these versions of transformers, torch and our own code;
    None for a hub id, whose weights may change."""
    if files.directory(path) is None:
        return None
    own = [Path(module.__file__ or "").read_bytes() for module in (attention, causal)]
    versions = [files.fingerprint(path), dtype, transformers.__version__, torch.__version__]
    digest = blake2b(b"\0".join([*own, *(version.encode() for version in versions)]), digest_size=16).hexdigest()
    return Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "compared" / digest


def read_config(path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration at a local directory or hub id; of a multimodal model, that of its text model.

    Raises ValueError where there is none, and for an architecture that is not supported.
    """
    try:
        with _loading(path):
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
    text.tie_word_embeddings = whole.tie_word_embeddings  # as transformers does
    return text


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    with _loading(path):
        return AutoTokenizer.from_pretrained(str(files.directory(path) or path), trust_remote_code=trust_remote_code)


@contextmanager
def _loading(path: str) -> Iterator[None]:
    """Turns all errors to one line: what transformers raises for a damaged directory depends on the damage."""
    try:
        yield
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SettingsError(
            f"model.path={path}: transformers cannot load it ({message}); choose another model"
        ) from error


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    model: CausalModel,
    answer_start: str | None,
    answer_prefix: str,
    stop: Sequence[int | str] = (),
) -> Vocabulary:
    """What strategies may know of the tokens. Added tokens are reserved even where they are not special.

    stop: ids or texts that end an answer, besides the end-of-text tokens. A text that is an added token counts as its id.
    Raises ValueError where nothing ends an answer, or where an id is not the tokenizer's.
    """
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    configured = model.model.generation_config.eos_token_id
    named = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    given = [named.get(one, one) if isinstance(one, str) else one for one in stop]
    stops = configured if isinstance(configured, list) else [] if configured is None else [configured]
    if invalid := [one for one in stops if not isinstance(one, int)]:
        raise SettingsError(f"generation_config.json: eos_token_id={invalid[0]!r} is no token id; choose another model")
    stops = {token for token in (*stops, *given, tokenizer.eos_token_id) if isinstance(token, int)}
    if not stops:
        raise SettingsError(
            "neither the tokenizer nor generation_config.json names an end-of-text token; set model.stop"
        )
    if wrong := [token for token in given if isinstance(token, int) and not 0 <= token < len(tokenizer)]:
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
        pieces=pieces(tokenizer, ends - set(start)),  # a delimiter that also pads keeps its piece
        delimiter=answer_start or "",
        stop_texts=tuple(dict.fromkeys(one for one in given if isinstance(one, str))),
    )
