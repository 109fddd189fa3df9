"""One call of `generate` inside vLLM: the state of its rows, what was drawn for them, and what they are fed.

The strategy is the object that the reference engine runs, with the rows' own random numbers. Nothing here imports vLLM, and
on an accelerator nothing is read back. In place of a generated token vLLM gets a number that stands for the row: so prefix
caching cannot give a row the keys and values of another one, which depend on what was fed.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import Exploration, State
from ngrpo.exploration.scores import entropy
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, DecodeStep, Rollouts, neutral

BLOCK = 64  # decode steps whose uniforms are made in one go
FINISHED = 0  # what vLLM gets in place of a token that ends its row


class Session:
    """B rows that may be decoded, preempted and resumed in any order: everything is kept by row and decode position.

    The token of decode position t is drawn from the logits after position t - 1 and fed at t. When a preempted row is
    recomputed, it is fed what was recorded, and nothing is drawn.
    """

    def __init__(self, strategy: Exploration, table: Tensor, keys: Tensor, starts: np.ndarray, limit: int):
        """keys: (B,); starts: (B,) prompt lengths; table: (V, D), in which vLLM looks up tokens."""
        rows, device = len(keys), table.device
        self.strategy, self.table, self.keys, self.starts, self.limit = strategy, table, keys.to(device), starts, limit
        self.state, self.read = strategy.start(rows, device), strategy.stopping.start(rows, device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # decode positions recorded
        # One more column than there are positions: on an accelerator, what must not be recorded is written there.
        shape = (rows, limit + 1)
        self.fields = {"tokens": torch.zeros(shape, dtype=torch.int64, device=device)}  # of a DecodeStep
        self.log_probs, self.entropies = (torch.zeros(shape, device=device) for _ in range(2))
        self.draws = self._draws()
        self.pending: tuple[Tensor, ...] = ()  # rows and decode positions of the logits that come next

    def _draws(self) -> Draws:
        """The random numbers of all rows and positions, with uniforms precomputed."""
        positions = torch.arange(self.limit, device=self.keys.device)
        blocks = [Draws(self.keys[:, None], block[None]).precompute() for block in positions.split(BLOCK)]
        whole = Draws(self.keys[:, None], positions[None])
        vars(whole).update(
            token=torch.cat([block.token for block in blocks], dim=1),
            explore=torch.cat([block.explore for block in blocks], dim=1),
        )
        return whole

    def feed(self, ids: Tensor, rows: np.ndarray, computed: np.ndarray, lengths: np.ndarray) -> Tensor:
        """(N, D) vectors to feed for the ids (N,) of one forward pass, in which each of the rows (R,) has `lengths` tokens
        after `computed` ones. All but ids is on the host, so that the device is not asked which tokens are answer tokens.

        `sample` then draws for these rows.
        """
        first, device = computed - self.starts[rows], self.table.device
        self.pending = tuple(torch.from_numpy(value).to(device, non_blocking=True) for value in (rows, first + lengths))
        positions = np.arange(lengths.sum()) + (first - lengths.cumsum() + lengths).repeat(lengths)
        answer = np.flatnonzero(positions >= 0)
        if not len(answer):
            return F.embedding(ids, self.table)
        fields = (answer, rows.repeat(lengths)[answer], positions[answer])
        places, row, at = (torch.from_numpy(value).to(device, non_blocking=True) for value in fields)
        noise = Draws(self.keys[row], at)  # without the uniforms, which nothing that is fed depends on
        fed = self.strategy.embed(self.steps(row, at), self.table, noise).to(self.table.dtype)
        if len(answer) == len(ids):
            return fed
        return F.embedding(ids.index_fill(0, places, 0), self.table).index_copy(0, places, fed)

    def sample(self, logits: Tensor) -> Tensor:
        """(R,) what vLLM gets in place of tokens, for logits (R, V) after the last token of every row that was fed."""
        return self._sample(logits, *self.pending)

    def _sample(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The same for given rows and decode positions (R,). Nothing changes where a position was recorded before, as after
        a preemption, or where a chunk of a prompt has not reached its end."""
        new = positions == self.count[rows]
        placeholders = rows + len(self.table)  # no token id, so it stands in no prompt
        if new.device.type == "cpu" and not new.all():  # where values may be read, nothing is computed for the others
            some = new.nonzero().squeeze(1)
            if not len(some):
                return placeholders
            return placeholders.index_copy(0, some, self._sample(logits[some], rows[some], positions[some]))
        at = torch.where(new, positions, self.limit)
        draws = self.draws[rows, at.clamp(max=self.limit - 1)]
        state = {name: value[rows] for name, value in self.state.items()}
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        step, log_prob, after = self.strategy.sample_and_log_prob(logits, state, draws, self.table)
        ended, read = self.strategy.stopping.push({name: value[rows] for name, value in self.read.items()}, step.tokens)
        for states, changed in ((self.state, after), (self.read, read)):
            _update(states, rows, new, changed)
        self._record(step, rows, at)
        self.log_probs[rows, at] = log_prob.masked_fill(step.role == FORCED, 0)
        self.entropies[rows, at] = entropy(logits)
        self.count[rows] = self.count[rows] + new
        return torch.where(ended, FINISHED, placeholders)

    def _record(self, step: DecodeStep, rows: Tensor, at: Tensor) -> None:
        for name, value in vars(step).items():
            if value is not None and name not in self.fields:
                self.fields[name] = neutral(name, self.fields["tokens"], value.shape[1:], value.dtype)
            if name in self.fields:
                field = self.fields[name]
                value = neutral(name, step.tokens, field.shape[2:], field.dtype) if value is None else value
                field[rows, at] = value.to(field.dtype)

    def steps(self, rows: Tensor, at: Tensor | slice) -> DecodeStep:
        """What was recorded for these rows at these decode positions."""
        return DecodeStep(**{name: value[rows, at] for name, value in self.fields.items()})

    def rollouts(self, prompts: Tensor, mask: Tensor, group: int) -> Rollouts:
        """The record of the whole call, as the reference engine returns it; prompts and mask are (B, S)."""
        length = int(self.count.max())
        every, columns = torch.arange(len(self.keys), device=self.keys.device), slice(0, length)
        written = torch.arange(length, device=self.keys.device)[None] < self.count[:, None]

        def masked(values: Tensor) -> Tensor:
            return values * written.view(*written.shape, *[1] * (values.dim() - 2))

        steps = self.steps(every, columns).map(masked).without_unused_recipes()
        log_probs, entropies = masked(self.log_probs[:, columns]), masked(self.entropies[:, columns])
        return Rollouts(prompts, mask, steps, written, log_probs, entropies, self.keys, group)


def _update(states: State, rows: Tensor, new: Tensor, changed: State) -> None:
    """Writes `changed` (N, ...) into the states (B, ...) of the `rows` (N,), where `new` (N,)."""
    for name, value in changed.items():
        states[name][rows] = torch.where(new.view(-1, *[1] * (value.dim() - 1)), value, states[name][rows])
