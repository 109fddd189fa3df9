"""One call of `generate` as it is seen inside vLLM: which rows there are, what they remember, what was drawn and is fed.

The strategy is the object that the reference engine runs, with the rows' own random numbers. Nothing here imports vLLM, and
on an accelerator nothing is read back. What vLLM holds of a generated token is a number that stands for the row and never
for a token: so no row can be given another one's cached keys and values, which depend on what was fed.
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
FINISHED = 0  # what vLLM is told in place of a token that ends its row


class Session:
    """B rows of which any may be decoded, leave, and come back: all is kept by row and decode position.

    A token of decode position t is drawn from the logits after position t - 1 and fed at t; recomputation after a row was
    preempted feeds again what is recorded and draws nothing.
    """

    def __init__(self, strategy: Exploration, table: Tensor, keys: Tensor, starts: np.ndarray, limit: int):
        """keys: (B,); starts: (B,) prompt lengths; table: (V, D), the one that the engine looks tokens up in."""
        rows, device = len(keys), table.device
        self.strategy, self.table, self.keys, self.starts, self.limit = strategy, table, keys.to(device), starts, limit
        self.state, self.read = strategy.start(rows, device), strategy.stopping.start(rows, device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # decode positions recorded
        # One column more than there are positions: what must not be recorded on an accelerator is written there.
        shape = (rows, limit + 1)
        self.fields = {"tokens": torch.zeros(shape, dtype=torch.int64, device=device)}  # of a DecodeStep
        self.log_probs, self.entropies = (torch.zeros(shape, device=device) for _ in range(2))
        self.draws = self._draws()
        self.asked: tuple[Tensor, ...] = ()  # rows and decode positions of the logits that come next

    def _draws(self) -> Draws:
        """The random numbers of all rows and positions, uniforms made beforehand."""
        positions = torch.arange(self.limit, device=self.keys.device)
        blocks = [Draws(self.keys[:, None], block[None]).precompute() for block in positions.split(BLOCK)]
        whole = Draws(self.keys[:, None], positions[None])
        vars(whole).update(
            token=torch.cat([block.token for block in blocks], dim=1),
            explore=torch.cat([block.explore for block in blocks], dim=1),
        )
        return whole

    def feed(self, ids: Tensor, rows: np.ndarray, computed: np.ndarray, lengths: np.ndarray) -> Tensor:
        """(N, D) what is fed for the ids (N,) of one pass through the model: for each of the rows (R,), `lengths` tokens
        after the `computed` ones, all on the host, which so knows without a look at the device what must be made anew.

        `sample` then draws for these rows.
        """
        first, device = computed - self.starts[rows], self.table.device
        self.asked = tuple(torch.from_numpy(value).to(device, non_blocking=True) for value in (rows, first + lengths))
        positions = np.arange(lengths.sum()) + (first - lengths.cumsum() + lengths).repeat(lengths)
        answer = np.flatnonzero(positions >= 0)
        if not len(answer):
            return F.embedding(ids, self.table)
        fields = (answer, rows.repeat(lengths)[answer], positions[answer])
        places, row, at = (torch.from_numpy(value).to(device, non_blocking=True) for value in fields)
        noise = Draws(self.keys[row], at)  # without the uniforms, which nothing that is fed depends on
        made = self.strategy.embed(self.steps(row, at), self.table, noise).to(self.table.dtype)
        if len(answer) == len(ids):
            return made
        return F.embedding(ids.index_fill(0, places, 0), self.table).index_copy(0, places, made)

    def sample(self, logits: Tensor) -> Tensor:
        """(R,) what vLLM is told for logits (R, V) after the last token of every row that was fed."""
        return self._sample(logits, *self.asked)

    def _sample(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The same for tokens of the decode positions (R,); those that were recorded before, as after a preemption, or that
        a chunk of a prompt does not reach yet change nothing."""
        new = positions == self.count[rows]
        told = rows + len(self.table)  # no token's number, so no prompt has it
        if new.device.type == "cpu" and not new.all():  # few rows, and no reading back to be avoided
            some = new.nonzero().squeeze(1)
            if not len(some):
                return told
            return told.index_copy(0, some, self._sample(logits[some], rows[some], positions[some]))
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
        return torch.where(ended, FINISHED, told)

    def _record(self, step: DecodeStep, rows: Tensor, at: Tensor) -> None:
        for name, value in vars(step).items():
            if value is not None and name not in self.fields:
                self.fields[name] = neutral(name, self.fields["tokens"], value.shape[1:], value.dtype)
            if name in self.fields:
                field = self.fields[name]
                value = neutral(name, step.tokens, field.shape[2:], field.dtype) if value is None else value
                field[rows, at] = value.to(field.dtype)

    def steps(self, rows: Tensor, at: Tensor | slice) -> DecodeStep:
        """What was recorded at these places."""
        return DecodeStep(**{name: value[rows, at] for name, value in self.fields.items()})

    def rollouts(self, prompts: Tensor, mask: Tensor, group: int) -> Rollouts:
        """The record of the whole call, as the reference engine makes it; prompts and mask are (B, S)."""
        length = int(self.count.max())
        every, columns = torch.arange(len(self.keys), device=self.keys.device), slice(0, length)
        written = torch.arange(length, device=self.keys.device)[None] < self.count[:, None]

        def kept(values: Tensor) -> Tensor:
            return values * written.view(*written.shape, *[1] * (values.dim() - 2))

        steps = self.steps(every, columns).map(kept).without_unused_recipes()
        logs, entropies = kept(self.log_probs[:, columns]), kept(self.entropies[:, columns])
        return Rollouts(prompts, mask, steps, written, logs, entropies, self.keys, group)


def _update(states: State, rows: Tensor, new: Tensor, changed: State) -> None:
    """Writes what `changed` (N, ...) has of those `rows` (N,) that are new into the states (B, ...) of all rows."""
    for name, value in changed.items():
        states[name][rows] = torch.where(new.view(-1, *[1] * (value.dim() - 1)), value, states[name][rows])
