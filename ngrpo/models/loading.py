"""A model and its tokenizer from a directory or the hub, and what strategies may know of its tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ngrpo.models import files
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Vocabulary


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

    Raises ValueError where the checkpoint lacks weights that the architecture needs.
    """
    transformers_logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
        str(files.directory(path) or path),
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(f"model.path={path}: the checkpoint lacks {sorted(report['missing_keys'])[:3]}")
    return CausalModel(model.eval(), precision, lora, recompute)


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model."""
    return AutoTokenizer.from_pretrained(str(files.directory(path) or path), trust_remote_code=trust_remote_code)


def vocabulary(
    tokenizer: PreTrainedTokenizerBase, model: CausalModel, answer_start: str | None, answer_prefix: str
) -> Vocabulary:
    """What strategies may know of the tokens. Added tokens count as reserved even where they are not special."""
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    configured = model.model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    stops = {token for token in (*stops, tokenizer.eos_token_id) if isinstance(token, int)}
    if not stops:
        raise ValueError("neither the tokenizer nor generation_config.json names an end-of-text token")
    return Vocabulary(
        size=len(tokenizer),
        reserved=tuple(sorted(added)),
        stops=tuple(sorted(stops)),
        answer_start=tuple(tokenizer.encode(answer_start, add_special_tokens=False)) if answer_start else (),
        answer_prefix=tuple(tokenizer.encode(answer_prefix, add_special_tokens=False)) if answer_prefix else (),
    )
