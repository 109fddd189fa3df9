"""The records that everything else exchanges: a vocabulary, one decode step, and one batch of rollouts.

Dimension letters, used in every shape comment: P prompts, G group, B = P * G rows, S prompt length, T answer length,
D width, V vocabulary, K candidates of a mixture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.rollout.keys import Draws
from ngrpo.rollout.texts import Pieces, Text

TOKEN, GAUSSIAN, GUMBEL, DIRICHLET, FORCED = range(5)  # roles: which log-probability applies to a step


class NotFinite(ValueError):
    """Logits, a loss or a gradient became NaN or infinite; earlier checkpoints are untouched."""


@dataclass(frozen=True)
class Vocabulary:
    """What a strategy may know of the token ids.

    size           number of ids the tokenizer can produce; embedding rows beyond it are padding
    reserved       ids of special or added tokens: never a neighbor, never mixed
    stops          ids that end an answer
    answer_start   ids to insert where the thinking part is to end; empty: the whole text is thinking
    answer_prefix  ids of the text that opens the final answer
    pieces         what ids add to a text; None: unknown, so that `answer_start` is searched for in the ids
    delimiter      the text that ends the thinking part, searched for in the text
    stop_texts     texts that end an answer, with the token in which they end; they are not graded
    """

    size: int
    reserved: tuple[int, ...]
    stops: tuple[int, ...]
    answer_start: tuple[int, ...] = ()
    answer_prefix: tuple[int, ...] = ()
    pieces: Pieces | None = None
    delimiter: str = ""
    stop_texts: tuple[str, ...] = ()

    @property
    def delimiters(self) -> tuple[Text, ...]:
        """What ends the thinking part: bytes where pieces are known, else ids."""
        delimiter = tuple(self.delimiter.encode()) if self.pieces else self.answer_start
        return (delimiter,) if delimiter else ()

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer that is graded: up to the first of `stop_texts`.

        Raises ValueError where pieces are unknown.
        """
        if self.pieces is None:
            raise ValueError("Vocabulary.pieces: got None, expected what the ids add to a text")
        text = self.pieces.text(ids)
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stop_texts if stop in text]
        return text[: sum(min(found))] if found else text

    def stopped(self, ids: Sequence[int]) -> bool:
        """Whether an answer of these ids ends with a stop id or a stop text."""
        text = self.pieces.text(ids) if self.pieces and self.stop_texts else ""
        return ids[-1] in self.stops or any(stop in text for stop in self.stop_texts)

    def ordinary(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows,) bool: which rows of an embedding table are ordinary tokens."""
        ids = torch.arange(rows, device=device)  # a tokenizer may have tokens beyond the table
        others = torch.tensor([*self.reserved, *self.stops], dtype=torch.int64, device=device)
        return (ids < self.size) & ~torch.isin(ids, others)


@dataclass(frozen=True)
class DecodeStep:
    """The text token and the recipe of the fed vector, for one decode step (leading shape (B,)) or many ((B, T), or (N,)
    flattened).

    tokens       (...,) int64      text token: what goes in the text and the reward
    role         (...,) int64      TOKEN | GAUSSIAN | GUMBEL | DIRICHLET | FORCED (inserted text: no loss)
    explored     (...,) bool       where exploration acted
    mix_ids      (..., K) or None  recipe: fed = sum of weight * E[id]; None: fed = E[tokens]
    mix_weights  (..., K) or None
    scores       (..., K) or None  perturbed scores of Gumbel-type strategies
    scale        (...,) or None    size of keyed noise; the noise itself is regenerated from the row's key
    offset       (..., D) or None  a soft vector that cannot be regenerated, added to the recipe
    """

    tokens: Tensor
    role: Tensor
    explored: Tensor
    mix_ids: Tensor | None = None
    mix_weights: Tensor | None = None
    scores: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "DecodeStep":
        """The same record with `change` applied to every field that is not None."""
        return DecodeStep(**{name: change(value) for name, value in vars(self).items() if value is not None})

    def __getitem__(self, index) -> "DecodeStep":
        return self.map(lambda value: value[index])

    def without_unused_recipes(self) -> "DecodeStep":
        """The same record; without recipes where no step explored, so that rate 0 is token sampling to the bit."""
        unused = self.scores is None and not self.explored.any()
        return replace(self, mix_ids=None, mix_weights=None) if unused else self

    @property
    def anchors(self) -> Tensor:
        """The token (...,) that a fed vector is built around: the first candidate of its recipe, or the text token."""
        return self.tokens if self.mix_ids is None else self.mix_ids[..., 0]


def combine(steps: Sequence[DecodeStep], put: Callable[[Sequence[Tensor]], Tensor]) -> DecodeStep:
    """One record of several: `put` combines the tensors that they have in a field.

    A field is None only if no step has it; where some have it, `neutral` fills in the others.
    """
    combined = {}
    for name in DecodeStep.__dataclass_fields__:
        values = [getattr(step, name) for step in steps]
        like = next((value for value in values if value is not None), None)
        if like is not None:
            tail, pairs = like.shape[steps[0].tokens.dim() :], zip(steps, values, strict=True)
            combined[name] = put([neutral(name, s.tokens, tail, like.dtype) if v is None else v for s, v in pairs])
    return DecodeStep(**combined)


def neutral(name: str, tokens: Tensor, tail: Sequence[int], dtype: torch.dtype) -> Tensor:
    """(..., *tail): what an absent field means in steps with these tokens (...)."""
    values = torch.zeros((*tokens.shape, *tail), dtype=dtype, device=tokens.device)
    if name == "mix_ids":
        values[:] = tokens[..., None]
    if name == "mix_weights":
        values[..., 0] = 1
    return values


@dataclass(frozen=True)
class Rollouts:
    """One batch of rollouts, checked when it is created.

    prompts      (B, S) int64, left-padded
    prompt_mask  (B, S) bool, true on the prompt's own tokens
    steps        DecodeStep of (B, T), right-padded
    mask         (B, T) bool, true through the end-of-text token
    log_probs    (B, T) float32, of the rollout engine; 0 where the loss mask is false
    entropy      (B, T) float32, nats, of softmax(logits): of the model, before temperature and filters, so that selections
                 may use it at temperature 1 only; 0 where mask is false; None where the engine does not compute it
    keys         (B,) int64, the rows' random keys
    group_size   G; rows of one prompt stand together
    """

    prompts: Tensor
    prompt_mask: Tensor
    steps: DecodeStep
    mask: Tensor
    log_probs: Tensor
    entropy: Tensor | None
    keys: Tensor
    group_size: int

    def __post_init__(self) -> None:
        (rows, width), length = self.prompts.shape, self.mask.shape[1]
        shapes = {"prompt_mask": (rows, width), "keys": (rows,)}
        given = {name: getattr(self, name) for name in (*shapes, "mask", "log_probs", "entropy")}
        given |= {f"steps.{f.name}": getattr(self.steps, f.name) for f in fields(DecodeStep)}
        for name, value in given.items():
            expected, got = shapes.get(name, (rows, length)), () if value is None else tuple(value.shape)
            holds = value is None or (got[:2] if name.startswith("steps.") else got) == expected
            _require(holds, name, f"shape {got}", expected)
        _require(rows % self.group_size == 0, "group_size", self.group_size, f"a divisor of {rows} rows")
        _require(bool(self.prompt_mask[:, -1].all()), "prompt_mask", "right padding", "left padding")
        _require(bool((self.mask[:, 1:] <= self.mask[:, :-1]).all()), "mask", "gaps", "true up to the end of each row")
        for name, value in (("log_probs", self.log_probs), ("entropy", self.entropy)):
            if value is not None and not value.isfinite().all():  # entropy also shows logits that a filter hides
                raise NotFinite(f"Rollouts.{name}: got a value that is not finite, expected finite log-probabilities")

    @property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: steps that may enter the loss: all but padding and inserted text."""
        return self.mask & (self.steps.role != FORCED)

    @property
    def consumed(self) -> Tensor:
        """(B, T) bool: steps whose fed vector the model read: all but the last of each row."""
        return self.mask & F.pad(self.mask[:, 1:], (0, 1))

    @property
    def explored(self) -> Tensor:
        """(B, T) bool: explored steps whose fed vector the model read."""
        return self.steps.explored & self.consumed

    @property
    def lengths(self) -> Tensor:
        """(B,) answer lengths in tokens, the end-of-text token included."""
        return self.mask.sum(dim=1)

    def answer_ids(self) -> list[list[int]]:
        """The token ids of every answer, the end-of-text token included."""
        rows = zip(self.steps.tokens.tolist(), self.lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    @property
    def draws(self) -> Draws:
        """The random numbers of every step, (B, T)."""
        return Draws(self.keys[:, None], torch.arange(self.mask.shape[1], device=self.keys.device)[None])

    def rows(self, index: Tensor) -> "Rollouts":
        """Some rows as a batch of single-row groups, trimmed to their longest prompt and answer."""
        length = int(self.lengths[index].max())
        start = int(self.prompt_mask[index].any(dim=0).to(torch.int8).argmax())
        return replace(
            self,
            prompts=self.prompts[index, start:],
            prompt_mask=self.prompt_mask[index, start:],
            steps=self.steps.map(lambda value: value[index, :length]),
            mask=self.mask[index, :length],
            log_probs=self.log_probs[index, :length],
            entropy=None if self.entropy is None else self.entropy[index, :length],
            keys=self.keys[index],
            group_size=1,
        )


def _require(holds: bool, name: str, got: object, expected: object) -> None:
    if not holds:
        raise ValueError(f"Rollouts.{name}: got {got}, expected {expected}")
