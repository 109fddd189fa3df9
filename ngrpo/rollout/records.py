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
    """Logits, a loss or a gradient became NaN or infinite; what was saved before is untouched."""


@dataclass(frozen=True)
class Vocabulary:
    """What a strategy may know of the token ids.

    size           number of ids the tokenizer can produce; embedding rows beyond it are padding
    reserved       ids that are special or added tokens: never a neighbor, never mixed
    stops          ids that end a text
    answer_start   ids of the text that ends the thinking part, where it is inserted; empty: the whole text is thinking
    answer_prefix  ids of the text that opens the final answer
    pieces         what ids add to a text; None: nothing is known of it, so that `answer_start` is looked for in the ids
    delimiter      the text that ends the thinking part, which is looked for in the text
    stop_texts     texts that end a text with the token in which they end, and are no part of it
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
        """What ends the thinking part: bytes where there are pieces, ids where there are none."""
        delimiter = tuple(self.delimiter.encode()) if self.pieces else self.answer_start
        return (delimiter,) if delimiter else ()

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, which is what is graded: up to the first of `stop_texts`, in which it ends.

        Raises ValueError where nothing is known of the ids.
        """
        if self.pieces is None:
            raise ValueError("Vocabulary.pieces: got None, expected what the ids add to a text")
        text = self.pieces.text(ids)
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stop_texts if stop in text]
        return text[: sum(min(found))] if found else text

    def stopped(self, ids: Sequence[int]) -> bool:
        """Whether an answer of these ids ends with a stop, an id or a text."""
        if ids[-1] in self.stops or not self.stop_texts or self.pieces is None:
            return ids[-1] in self.stops
        text = self.pieces.text(ids)
        return any(stop in text for stop in self.stop_texts)

    def ordinary(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows,) bool: the rows of an embedding table that stand for ordinary tokens."""
        ids = torch.arange(rows, device=device)  # a tokenizer may have tokens beyond the table
        others = torch.tensor([*self.reserved, *self.stops], dtype=torch.int64, device=device)
        return (ids < self.size) & ~torch.isin(ids, others)


@dataclass(frozen=True)
class DecodeStep:
    """What was fed and what was realized, for one decode step (leading shape (B,)) or many ((B, T), or (N,) flattened).

    tokens       (...,) int64      realized token: what goes in the text and the reward
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
        """The same record with `change` applied to every field that is there."""
        return DecodeStep(**{name: change(value) for name, value in vars(self).items() if value is not None})

    def __getitem__(self, index) -> "DecodeStep":
        return self.map(lambda value: value[index])

    @property
    def anchors(self) -> Tensor:
        """The token (...,) that a fed vector stands around: the first candidate of its recipe, or the realized token."""
        return self.tokens if self.mix_ids is None else self.mix_ids[..., 0]


def combine(steps: Sequence[DecodeStep], put: Callable[[Sequence[Tensor]], Tensor]) -> DecodeStep:
    """One record of several: `put` makes one tensor of what they have in a field.

    A field is None only if no step has it; elsewhere absence becomes its meaning.
    """
    combined = {}
    for name in DecodeStep.__dataclass_fields__:
        values = [getattr(step, name) for step in steps]
        like = next((value for value in values if value is not None), None)
        if like is not None:
            pairs = zip(steps, values, strict=True)
            combined[name] = put([_neutral(name, step, like) if value is None else value for step, value in pairs])
    return DecodeStep(**combined)


def _neutral(name: str, step: DecodeStep, like: Tensor) -> Tensor:
    """What an absent field of `step` means, shaped like the same field of a step that has it."""
    empty = torch.zeros((*step.tokens.shape, *like.shape[step.tokens.dim() :]), dtype=like.dtype, device=like.device)
    if name == "mix_ids":
        empty = step.tokens[..., None].expand_as(empty).clone()
    if name == "mix_weights":
        empty[..., 0] = 1
    return empty


@dataclass(frozen=True)
class Rollouts:
    """One batch of rollouts, checked once, where it is made.

    prompts      (B, S) int64, left-padded
    prompt_mask  (B, S) bool, true on the prompt's own tokens
    steps        DecodeStep of (B, T), right-padded
    mask         (B, T) bool, true through the end-of-text token
    log_probs    (B, T) float32, of the rollout engine; 0 where the loss mask is false
    entropy      (B, T) float32, nats, of softmax(logits): a figure of the model, before temperature and filters, and no
                 selection's unless the temperature is 1; 0 where mask is false; None where the engine does not tell it
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
            if value is not None and not value.isfinite().all():  # a filter can hide a logit that entropy sees
                raise NotFinite(f"Rollouts.{name}: got a value that is not finite, expected finite log-probabilities")

    @property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: steps that the loss may touch, so all but padding and inserted text."""
        return self.mask & (self.steps.role != FORCED)

    @property
    def consumed(self) -> Tensor:
        """(B, T) bool: steps whose fed vector the model read, so all but the last of each row."""
        return self.mask & F.pad(self.mask[:, 1:], (0, 1))

    @property
    def explored(self) -> Tensor:
        """(B, T) bool: explored steps whose fed vector the model read."""
        return self.steps.explored & self.consumed

    @property
    def lengths(self) -> Tensor:
        """(B,) answer lengths in tokens, the end-of-text token included."""
        return self.mask.sum(dim=1)

    @property
    def draws(self) -> Draws:
        """The random numbers of every step, (B, T)."""
        return Draws(self.keys[:, None], torch.arange(self.mask.shape[1], device=self.keys.device)[None])

    def rows(self, index: Tensor) -> "Rollouts":
        """Some rows as a batch of single-row groups, trimmed to their own longest prompt and answer."""
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
