"""Any Hugging Face causal language model, seen as three things: an embedding table, a backbone and a head.

It does not know what is fed through it or why.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from ngrpo.exploration.base import Vocabulary
from ngrpo.models import files
from ngrpo.models.adapters import Adapters
from ngrpo.models.attention import Layout, PackedRows, registered
from ngrpo.models.prompting import PLAIN, Prompting


class CausalModel(nn.Module):
    """`table` (V, D), `hidden` and `logits` of an unmodified model, so that vectors can be fed in place of tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str = "float32",
        lora: Mapping[str, Any] | None = None,
        recompute: bool = False,
        attention: str = "grouped",
    ):
        """lora: r, alpha and target_modules of adapters; None or r None trains the model itself.

        recompute: keep only the input of each layer for the backward pass (gradient checkpointing).
        attention: a name of attention.KERNELS; the model's own setting is replaced.
        """
        super().__init__()
        self.model, self.precision = model, precision
        model.set_attn_implementation(registered(attention))
        self._recomputed: list[nn.Module] = []
        self._refuse_windows()
        self._check_path()
        self.adapters = Adapters(model, lora) if lora and lora["r"] else None
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
            self._recomputed = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def autocast(self) -> torch.autocast:
        """The context to compute in: bfloat16 matmuls over the weights as they are, where precision asks for them."""
        return torch.autocast(self.table.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def table(self) -> Tensor:
        """The input-embedding table (V, D)."""
        return self.model.get_input_embeddings().weight  # pyright: ignore

    @property
    def head(self) -> Tensor:
        """The output-embedding table (V, D); `table` itself where the two are tied."""
        return self.model.get_output_embeddings().weight  # pyright: ignore

    def hidden(
        self, embeddings: Tensor, positions: Tensor, layout: Layout | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Final hidden states (B, L, D) of fed vectors (B, L, D) at positions (B, L).

        A layout tells which of them see each other; None means plain causal attention, and padding on the right.
        """
        # Layers recompute in training mode only, which nothing else may see: there is no dropout in a replay.
        for layer in self._recomputed:
            layer.training = cache is None and torch.is_grad_enabled()
        return self.model.base_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            layout=layout,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) in float32 at least, from final hidden states (..., D)."""
        logits = self.model.get_output_embeddings()(hidden)  # pyright: ignore
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def learned(self) -> dict[str, Tensor]:
        """All weights that training changes, by name: everything, or the adapters where there are some."""
        state = self.state_dict()
        if self.adapters is None:
            return state
        return {name: state[name] for name, value in self.named_parameters() if value.requires_grad}

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `learned` gave. Raises ValueError where the names are not the same."""
        expected = set(self.learned())
        if set(state) != expected:
            names = sorted(set(state) ^ expected)[:3]
            raise ValueError(f"the checkpoint's weights are not this model's ({names} ...): fresh=true starts anew")
        self.load_state_dict(state, strict=False)

    def base(self) -> AbstractContextManager[None]:
        """Within it the model computes as it was before training, where it has adapters to switch off."""
        return self.adapters.off() if self.adapters else nullcontext()

    def save(self, directory: Path) -> None:
        """Config and safetensors for from_pretrained, adapters merged; the adapters alone in `adapter/` beside them."""
        if self.adapters is None:
            self.model.save_pretrained(directory)
        else:
            self.model.save_pretrained(directory, state_dict=self.adapters.merged())
            self.adapters.write(directory / "adapter")

    def _refuse_windows(self) -> None:
        """The engine lets every token see all before it; a sliding window would differ between rollout and replay."""
        config = self.model.config
        kinds = getattr(config, "layer_types", None) or [
            "sliding" if getattr(config, "sliding_window", None) else "full"
        ]
        if any(not kind.startswith("full") for kind in kinds):
            name = type(self.model).__name__
            raise ValueError(f"{name}: layers of kind {sorted(set(kinds))}, only full attention can be replayed")

    @torch.no_grad()
    def _check_path(self) -> None:
        """Refuse models whose logits are more than head(backbone(table[ids])) (soft caps, scaled embeddings, adapters) or
        whose attention does not heed a layout: two rows that share two tokens must be what they are alone."""
        device = self.table.device
        rows = torch.tensor([[0, 1, 2], [0, 1, 3]], device=device)
        layout = PackedRows(rows, torch.tensor([0, 1, 2, 5], device=device))
        positions = torch.tensor([[0, 1, 2, 2]], device=device)
        ours = self.logits(
            self.hidden(F.embedding(positions.new_tensor([[0, 1, 2, 3]]), self.table), positions, layout)
        )
        theirs = torch.cat([self.model(input_ids=row[None]).logits[0, -1:] for row in rows]).to(ours.dtype)
        if not torch.allclose(ours[0, 2:], theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            kind = type(self.model).__name__
            raise ValueError(f"{kind}: its logits are not head(backbone(embedding)), so vectors cannot be fed to it")


def load(
    path: str,
    dtype: str = "float32",
    attention: str = "grouped",
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
    return CausalModel(model.eval(), precision, lora, recompute, attention)


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


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], context: int, prompting: Prompting = PLAIN
) -> tuple[Tensor, Tensor]:
    """Prompts as ids and mask, both (P, S), left-padded. Raises ValueError where one exceeds `context` tokens."""
    ids = [prompting.encode(tokenizer, text) for text in texts]
    width = max(len(row) for row in ids)
    if width > context or not all(ids):
        longest = max(range(len(ids)), key=lambda row: len(ids[row]))
        raise ValueError(f"a prompt has {width} tokens, allowed are 1 to {context}: {texts[longest][:80]!r}")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    padded = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    return padded, torch.arange(width)[None] >= width - lengths[:, None]
