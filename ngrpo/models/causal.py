"""Any Hugging Face causal language model, seen as three things: an embedding table, a backbone and a head.

The head reads many hidden states a chunk at a time, in the backward pass too: no chunk's logits outlive it, and the head's
gradient is one buffer that all chunks add to, where autograd alone would make one as large as the vocabulary per chunk.
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

GRADIENT_ROWS = 2**14  # rows of the head whose gradient is computed in one go
# Logits of one chunk. What is larger than 32 MiB, a CPU's allocator gives back at once and has to get anew.
CHUNK = {"cpu": 2**22, "cuda": 2**24}
PROBE, STRIDE = 18, 9973  # tokens that a model is tried with when it is loaded, and a prime that spreads them
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest logit
CHUNK_TOKENS = 96  # at least: every chunk reads the whole head

# What is wanted of the logits (n, V) of the states that begin at a place: tensors with one entry per state.
Reading = Callable[[Tensor, int], tuple[Tensor, ...]]


class CausalModel(nn.Module):
    """`table` (V, D), `hidden` and `logits` of an unmodified model, so that vectors can be fed in place of tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str = "float32",
        lora: Mapping[str, Any] | None = None,
        recompute: bool = False,
        compared: bool = False,
    ):
        """compared: this model was found to be what transformers makes of it before, and is not compared again.

        lora: r, alpha and target_modules of adapters; None or r None trains the model itself.

        recompute: keep only the input of each layer for the backward pass (gradient checkpointing).
        """
        super().__init__()
        self.model, self.precision = model, precision
        # Within it weights are whole, wherever their parts are kept; on one device they always are. Whoever cuts the model
        # says how.
        self.gathered: Callable[[], AbstractContextManager[None]] = nullcontext
        # Decoder layers: what is computed again in the backward pass, and cut over ranks, in one piece.
        self.layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._recomputes = recompute
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.divisor: float = getattr(config, "logits_scaling", 1.0)
        if not compared:
            self._compare()
        self._names = set(model.state_dict())  # as a checkpoint has them: adapters lengthen some
        model.set_attn_implementation(NAME)
        self.adapters = Adapters(model, lora) if lora and lora["r"] else None
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def autocast(self) -> torch.autocast:
        """The context to compute in: bfloat16 matmuls over the weights as they are, where precision asks for them."""
        return torch.autocast(self.head.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def table(self) -> Tensor:
        """What is fed for each token (V, D): the rows of the input embedding, times the scale that it has in Gemma.

        With a scale every access makes the product anew, and gradients reach the weights through it: read it once a pass.
        """
        embedding: Any = self.model.get_input_embeddings()
        scale = getattr(embedding, "embed_scale", None)
        return embedding.weight if scale is None else embedding.weight * scale.to(embedding.weight.dtype)

    @property
    def head(self) -> Tensor:
        """The output-embedding table (V, D); that of the input embedding, without its scale, where the two are tied."""
        return self.model.get_output_embeddings().weight  # pyright: ignore

    @property
    def attended(self) -> tuple[int, int]:
        """Number of layers, and entries of what the attention heads of one give together."""
        config = self.model.config.get_text_config()
        return config.num_hidden_layers, config.num_attention_heads * head_width(config)

    def hidden(
        self, embeddings: Tensor, positions: Tensor, layout: Layout | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Final hidden states (B, L, D) of fed vectors (B, L, D) at positions (B, L).

        A layout tells which of them see each other; None means plain causal attention, and padding on the right.
        """
        # Layers recompute in training mode only, which nothing else may see: there is no dropout in a replay.
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
        """Logits (..., V), float32 at least, of what the head gives: divided (Granite), soft-capped (Gemma 2)."""
        logits = products.to(torch.promote_types(products.dtype, torch.float32))
        logits = logits if self.divisor == 1 else logits / self.divisor
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

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
            raise SettingsError(f"the checkpoint's weights are not this model's ({names} ...): fresh=true starts anew")
        self.load_state_dict(state, strict=False)

    def base(self) -> AbstractContextManager[None]:
        """Within it the model computes as it was before training, where it has adapters to switch off."""
        return self.adapters.peft.disable_adapter() if self.adapters else nullcontext()

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names as a checkpoint has them and whole tensors, one after the other, adapters merged; of tied ones the first.

        Outside of `gathered` each is put together in its turn, so all ranks ask for all.
        """
        # Not of state_dict(), which would take apart what `gathered` has put together.
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            plain = name.replace(".base_layer.", ".")
            if plain in self._names:
                value = value.detach() if self.adapters is None else self.adapters.merged(name, value.detach())
                yield plain, value.full_tensor() if isinstance(value, DTensor) else value

    def save(self, directory: Path) -> None:
        """Config and safetensors for from_pretrained, adapters merged; the adapters alone in `adapter/` beside them.

        Inside of `gathered`, where one rank may do it alone.
        """
        # Names as they are here: those of a file that held a multimodal model are none of its text model's.
        self.model.save_pretrained(directory, save_original_format=False, state_dict=dict(self.weights()))
        if self.adapters is not None:
            self.adapters.write(directory / "adapter")

    @torch.no_grad()
    def _compare(self) -> None:
        """Refuses models that our attention makes others than those that transformers runs, on one prompt of two ends.

        Their logits may be more than head(backbone(table[ids])) (caps and scales of another kind), their attention may have
        parts that ours lacks (sinks) or not heed a layout: rows that share a beginning must be what stock attention makes
        of each alone.
        """
        table = self.table
        line = torch.arange(PROBE, device=table.device)
        ids, rows = line * STRIDE % len(table), torch.stack([line[:-1], torch.cat([line[:-2], line[-1:]])])
        self.model.set_attn_implementation("eager")
        theirs = torch.cat([self.model(input_ids=ids[row][None]).logits[0, -1:] for row in rows])
        self.model.set_attn_implementation(NAME)
        layout = PackedRows(rows, torch.tensor([*range(PROBE - 1), 2 * PROBE - 3], device=line.device))
        positions = torch.tensor([[*range(PROBE - 1), PROBE - 2]], device=line.device)
        ours = self.logits(self.hidden(F.embedding(ids[None], table), positions, layout))[0, -2:]
        tolerance = TOLERANCE.get(table.dtype, 0.03) * float(theirs.abs().max())
        if not torch.allclose(ours, theirs.to(ours.dtype), rtol=0, atol=tolerance):
            gap, kind = float((ours - theirs).abs().max()), type(self.model).__name__
            raise SettingsError(
                f"{kind}: its logits are not head(backbone(embedding)) under full attention (they differ by {gap:.2g}), so "
                "vectors cannot be fed to it; choose another model"
            )


def head_width(config: PreTrainedConfig) -> int:
    """Entries of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits are in memory at a time; device: its type."""
    return max(CHUNK_TOKENS, CHUNK.get(device, 2**24) // vocabulary)


def read_logits(
    model: CausalModel, hidden: Tensor, chunk: int, reading: Reading, learners: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`reading` of the logits of hidden states (N, D), `chunk` at a time, put together.

    Gradients flow into the states, the head and `learners`: all else that `reading` depends on.
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
    """Forward keeps nothing but its inputs; backward computes each chunk of logits again and its gradient by hand."""

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
        of_hidden, of_learners = torch.empty_like(hidden), [torch.zeros_like(learner) for learner in learners]
        of_head = torch.zeros_like(head) if head.requires_grad else None
        with ctx.model.autocast():
            for start in range(0, len(hidden), ctx.chunk):
                part = hidden[start : start + ctx.chunk]
                wanted = [None if g is None else g[start : start + ctx.chunk] for g in gradients]
                of_logits, more = _of_chunk(ctx.model, part, ctx.reading, start, wanted, learners)
                with torch.autocast(part.device.type, enabled=False):
                    of_hidden[start : start + ctx.chunk] = of_logits @ head.to(of_logits.dtype)
                    if of_head is not None:
                        _add_products(of_head, of_logits, part.to(of_logits.dtype))
                for total, gradient in zip(of_learners, more, strict=True):
                    if gradient is not None:
                        total += gradient
                del of_logits, more  # or they would stand beside the next chunk's
        return None, None, None, of_hidden, of_head, *of_learners


def _of_chunk(
    model: CausalModel, part: Tensor, reading: Reading, start: int, wanted: Sequence[Tensor | None], learners: Sequence
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The gradient of one chunk's logits, in the precision that the head computes in, and those of the learners."""
    raw = model.model.get_output_embeddings()(part).detach().requires_grad_()  # pyright: ignore
    with torch.enable_grad():
        found = reading(model.finished(raw), start)
    pairs = [(value, g) for value, g in zip(found, wanted, strict=True) if value.requires_grad and g is not None]
    values, given = zip(*pairs, strict=True)
    of_logits, *more = torch.autograd.grad(values, [raw, *learners], given, allow_unused=True)
    return of_logits, more


def _add_products(total: Tensor, of_logits: Tensor, part: Tensor) -> None:
    """total (V, D) += of_logits (n, V) transposed times part (n, D), without a second tensor of that size."""
    if total.dtype == part.dtype:
        total.addmm_(of_logits.T, part)
        return
    for rows, columns in zip(total.split(GRADIENT_ROWS), of_logits.split(GRADIENT_ROWS, dim=1), strict=True):
        rows += columns.T @ part
