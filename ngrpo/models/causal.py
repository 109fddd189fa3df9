"""Any Hugging Face causal language model as three parts: an embedding table, a backbone and a head.

The head reads hidden states in chunks, in the backward pass too: logits of one chunk only are in memory, and the head's
gradient is one buffer that all chunks add to, where autograd alone would allocate one as large as the head per chunk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ngrpo.models.adapters import Adapters
from ngrpo.models.attention import NAME, Layout, PackedRows
from ngrpo.targets import SettingsError

GRADIENT_ROWS = 2**14  # rows of the head whose gradient is computed at once
# Logits of a chunk. A CPU's allocator returns blocks above 32 MiB to the system at once and has to get them again.
CHUNK = {"cpu": 2**22, "cuda": 2**24}
PROBE, STRIDE = 18, 9973  # tokens that a loaded model is compared on, and a prime that spreads them over the vocabulary
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # relative to the largest logit
CHUNK_TOKENS = 96  # at least: every chunk reads the whole head

# Takes logits (n, V) and the index of their first state; returns tensors with one entry per state.
Reading = Callable[[Tensor, int], tuple[Tensor, ...]]


class CausalModel(nn.Module):
    """`table` (V, D), `hidden` and `logits` of an unmodified model, so that it can be fed vectors in place of tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str = "float32",
        lora: Mapping[str, Any] | None = None,
        recompute: bool = False,
        compared: bool = False,
    ):
        """lora: r, alpha and target_modules of adapters; None or r None trains the model itself.

        recompute: keep only the input of each layer for the backward pass (gradient checkpointing).

        compared: this model has been compared with that of transformers before and need not be again.
        """
        super().__init__()
        self.model, self.precision = model, precision
        # A context in which weights are whole; on one device they always are. Sharding replaces it.
        self.gathered: Callable[[], AbstractContextManager[None]] = nullcontext
        # Decoder layers: the units of gradient checkpointing and of sharding.
        self.layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._recomputes = recompute
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.divisor: float = getattr(config, "logits_scaling", 1.0)
        if not compared:
            self._compare()
        self._names = set(model.state_dict())  # as in a checkpoint: adapters lengthen some
        model.set_attn_implementation(NAME)
        self.adapters = Adapters(model, lora) if lora and lora["r"] else None
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def autocast(self) -> torch.autocast:
        """The context to compute in: bfloat16 matmuls, whatever the dtype of the weights, where precision is bfloat16."""
        return torch.autocast(self.head.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def table(self) -> Tensor:
        """The vectors fed for each token (V, D): the rows of the input embedding, times its scale, which Gemma has.

        With a scale every access computes the product again, and gradients reach the weights through it: read it once per
        forward pass.
        """
        embedding: Any = self.model.get_input_embeddings()
        scale = getattr(embedding, "embed_scale", None)
        return embedding.weight if scale is None else embedding.weight * scale.to(embedding.weight.dtype)

    @property
    def head(self) -> Tensor:
        """The output embedding (V, D); the input embedding, without its scale, where the two are tied."""
        return self.model.get_output_embeddings().weight  # pyright: ignore

    @property
    def attended(self) -> tuple[int, int]:
        """Number of layers, and width of the output of all attention heads of a layer."""
        config = self.model.config.get_text_config()
        return config.num_hidden_layers, config.num_attention_heads * head_width(config)

    def hidden(
        self, embeddings: Tensor, positions: Tensor, layout: Layout | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Final hidden states (B, L, D) of fed vectors (B, L, D) at positions (B, L).

        A layout says which of them see each other; None means causal attention, with padding on the right.
        """
        # Layers recompute in training mode only, in which nothing else may be: there is no dropout in a replay.
        for layer in self.layers if self._recomputes else ():
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
        return self.finished(self.model.get_output_embeddings()(hidden))  # pyright: ignore

    def finished(self, products: Tensor) -> Tensor:
        """Logits (..., V), float32 at least, from the head's products: divided (Granite), soft-capped (Gemma 2)."""
        logits = products.to(torch.promote_types(products.dtype, torch.float32))
        logits = logits if self.divisor == 1 else logits / self.divisor
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def learned(self) -> dict[str, Tensor]:
        """All weights that training changes, by name: the adapters where there are some, else all."""
        state = self.state_dict()
        if self.adapters is None:
            return state
        return {name: state[name] for name, value in self.named_parameters() if value.requires_grad}

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Load what `learned` returned. Raises ValueError where the names differ."""
        expected = set(self.learned())
        if set(state) != expected:
            names = sorted(set(state) ^ expected)[:3]
            raise SettingsError(f"the checkpoint's weights are not this model's ({names} ...): fresh=true starts anew")
        self.load_state_dict(state, strict=False)

    def base(self) -> AbstractContextManager[None]:
        """A context in which adapters are off, so that the model computes as before training; without any it does nothing."""
        return self.adapters.peft.disable_adapter() if self.adapters else nullcontext()

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in a checkpoint, whole tensor), one after the other, with adapters merged; of tied tensors the first only.

        Outside `gathered` each tensor is gathered in its turn, so all ranks must iterate over all.
        """
        # Not from state_dict(), which would shard again what `gathered` has gathered.
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            plain = name.replace(".base_layer.", ".")
            if plain in self._names:
                value = value.detach() if self.adapters is None else self.adapters.merged(name, value.detach())
                yield plain, value.full_tensor() if isinstance(value, DTensor) else value

    def save(self, directory: Path) -> None:
        """Config and safetensors for from_pretrained, with adapters merged; the adapters alone in `adapter/`.

        Must be called inside `gathered`, where one rank may do it alone.
        """
        # With the names of this model: those in the files of a multimodal model are not its text model's.
        self.model.save_pretrained(directory, save_original_format=False, state_dict=dict(self.weights()))
        if self.adapters is not None:
            self.adapters.write(directory / "adapter")

    @torch.no_grad()
    def _compare(self) -> None:
        """Refuses models whose logits with our attention are not those with transformers' own, on a prompt with two ends.

        Logits may be more than head(backbone(table[ids])) (other caps and scales), and attention may have parts that ours
        lacks (sinks) or may ignore the layout: rows that share a prefix must get what each gets alone.
        """
        table = self.table
        tokens = torch.arange(PROBE, device=table.device)
        ids, rows = tokens * STRIDE % len(table), torch.stack([tokens[:-1], torch.cat([tokens[:-2], tokens[-1:]])])
        self.model.set_attn_implementation("eager")
        theirs = torch.cat([self.model(input_ids=ids[row][None]).logits[0, -1:] for row in rows])
        self.model.set_attn_implementation(NAME)
        layout = PackedRows(rows, torch.tensor([*range(PROBE - 1), 2 * PROBE - 3], device=table.device))
        positions = torch.tensor([[*range(PROBE - 1), PROBE - 2]], device=table.device)
        ours = self.logits(self.hidden(F.embedding(ids[None], table), positions, layout))[0, -2:]
        tolerance = TOLERANCE.get(table.dtype, 0.03) * float(theirs.abs().max())
        if not torch.allclose(ours, theirs.to(ours.dtype), rtol=0, atol=tolerance):
            gap, kind = float((ours - theirs).abs().max()), type(self.model).__name__
            raise SettingsError(
                f"{kind}: its logits are not head(backbone(embedding)) under full attention (they differ by {gap:.2g}), so "
                "vectors cannot be fed to it; choose another model"
            )


def head_width(config: PreTrainedConfig) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits are in memory at a time; device: a device type."""
    return max(CHUNK_TOKENS, CHUNK.get(device, 2**24) // vocabulary)


def read_logits(
    model: CausalModel, hidden: Tensor, chunk: int, reading: Reading, learners: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`reading` of the logits of hidden states (N, D), `chunk` states at a time, concatenated.

    Gradients flow into the states, the head and `learners`, all other tensors that `reading` depends on.
    """
    if torch.is_grad_enabled() and len(hidden) > chunk and isinstance(model.model.get_output_embeddings(), nn.Linear):
        learners = [learner for learner in learners if learner.requires_grad]
        return _InChunks.apply(model, chunk, reading, hidden, model.head, *learners)  # pyright: ignore
    return _read(model, hidden, chunk, reading)


def _read(model: CausalModel, hidden: Tensor, chunk: int, reading: Reading) -> tuple[Tensor, ...]:
    # An empty batch still runs once, so that every parameter gets a gradient.
    starts = range(0, max(len(hidden), 1), chunk)
    pieces = [reading(model.logits(hidden[start : start + chunk]), start) for start in starts]
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


class _InChunks(torch.autograd.Function):
    """Forward keeps nothing but its inputs; backward recomputes each chunk of logits, and its gradient explicitly."""

    @staticmethod
    def forward(
        ctx: Any, model: CausalModel, chunk: int, reading: Reading, hidden: Tensor, head: Tensor, *learners: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.model, ctx.chunk, ctx.reading = model, chunk, reading
        ctx.save_for_backward(hidden, head, *learners)
        found = _read(model, hidden, chunk, reading)
        ctx.mark_non_differentiable(*(value for value in found if not value.is_floating_point()))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, head, *learners = ctx.saved_tensors
        hidden_grad, learner_grads = torch.empty_like(hidden), [torch.zeros_like(learner) for learner in learners]
        head_grad = torch.zeros_like(head) if head.requires_grad else None
        with ctx.model.autocast():
            for start in range(0, len(hidden), ctx.chunk):
                part = hidden[start : start + ctx.chunk]
                grads = [None if g is None else g[start : start + ctx.chunk] for g in gradients]
                logit_grad, more = _chunk_grads(ctx.model, part, ctx.reading, start, grads, learners)
                with torch.autocast(part.device.type, enabled=False):
                    hidden_grad[start : start + ctx.chunk] = logit_grad @ head.to(logit_grad.dtype)
                    if head_grad is not None:
                        _add_products(head_grad, logit_grad, part.to(logit_grad.dtype))
                for total, gradient in zip(learner_grads, more, strict=True):
                    if gradient is not None:
                        total += gradient
                del logit_grad, more  # or they would be in memory together with the next chunk's
        return None, None, None, hidden_grad, head_grad, *learner_grads


def _chunk_grads(
    model: CausalModel, part: Tensor, reading: Reading, start: int, grads: Sequence[Tensor | None], learners: Sequence
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The gradient with respect to a chunk's logits, in the precision of the head, and those of the learners."""
    raw = model.model.get_output_embeddings()(part).detach().requires_grad_()  # pyright: ignore
    with torch.enable_grad():
        found = reading(model.finished(raw), start)
    pairs = [(value, g) for value, g in zip(found, grads, strict=True) if value.requires_grad and g is not None]
    values, given = zip(*pairs, strict=True)
    logit_grad, *more = torch.autograd.grad(values, [raw, *learners], given, allow_unused=True)
    return logit_grad, more


def _add_products(total: Tensor, logit_grad: Tensor, part: Tensor) -> None:
    """total (V, D) += logit_grad (n, V) transposed times part (n, D), without a second tensor of that size."""
    if total.dtype == part.dtype:
        total.addmm_(logit_grad.T, part)
        return
    for rows, columns in zip(total.split(GRADIENT_ROWS), logit_grad.split(GRADIENT_ROWS, dim=1), strict=True):
        rows += columns.T @ part
