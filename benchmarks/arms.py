"""What is compared: this engine under each strategy, and `generate` of transformers, on one model and one workload.

It does not know how an arm is timed or reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import models
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ngrpo.exploration.base import Exploration, State
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.gumbel_soft import GumbelSoft
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models import causal
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.keys import Draws, row_keys
from ngrpo.rollout.records import Step
from ngrpo.tasks.story_math import StoryMath

PEER_ATTENTION = "sdpa"  # what transformers takes by default; on a CPU its other kernel, eager, is slower still
NEVER = -2  # a token id that no model produces
BASELINE = "token_sampling"
STRATEGIES: dict[str, Callable[[], Exploration]] = {
    BASELINE: TokenSampling,
    "neighbor_mix": partial(NeighborMix, rate=0.1, k=3),
    "gaussian_noise": partial(GaussianNoise, rate=0.1, scale=0.33),
    "stht": partial(SoftTokens, soft_temperature=0.5, scale=0.33),
    "gumbel_soft": GumbelSoft,
}


@dataclass(frozen=True)
class Workload:
    """P prompts, `group` completions each. `limit` is max_new_tokens; rows stop by themselves only where `stops`, else
    after `lengths` (B,) tokens where these are given."""

    name: str
    task: StoryMath
    group: int
    limit: int
    stops: bool
    lengths: Tensor | None = None

    @property
    def rows(self) -> int:
        """B = P * G."""
        return len(self.task.problems) * self.group


def natural(limit: int, prompts: int = 32, group: int = 8) -> Workload:
    """Stories of every level side by side, so that answers end at very different lengths."""
    name = f"natural lengths, {prompts} x {group}"
    return Workload(name, StoryMath("train", range(1, 9), prompts), group, limit, stops=True)


def equal(limit: int, prompts: int = 32, group: int = 8) -> Workload:
    """Every row runs to `limit` tokens, whatever it says."""
    name = f"equal lengths, {prompts} x {group}"
    return Workload(name, StoryMath("train", range(1, 9), prompts), group, limit, stops=False)


def imposed(workload: Workload) -> Workload:
    """The same for a model that never stops: its rows end where the bundled model's do."""
    return replace(workload, stops=False, lengths=Bench.load().ours(BASELINE, workload)())


@dataclass(frozen=True)
class Bench:
    """A model, once for this engine and once as transformers has it."""

    model: causal.CausalModel
    peer: Any
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls,
        name: str = "tiny",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        vocabulary: int | None = None,
        peer: bool = True,
    ) -> "Bench":
        """Both copies of a model of models.NAMES; peer=False leaves the second out."""
        model = causal.CausalModel(models.stock(name, PEER_ATTENTION, device, dtype, vocabulary))
        other = models.stock(name, PEER_ATTENTION, device, dtype, vocabulary) if peer else None
        if other is not None:
            other.generation_config.eos_token_id = None  # pyright: ignore - the workload says where rows end
        return cls(model, other, models.tokenizer(name, vocabulary))

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.model.table.device

    def prompts(self, workload: Workload) -> tuple[Tensor, Tensor]:
        """Ids and mask (P, S), left-padded."""
        room = self.model.model.config.max_position_embeddings - workload.limit
        ids, mask = causal.encode(self.tokenizer, [problem.prompt for problem in workload.task.problems], room)
        return ids.to(self.device), mask.to(self.device)

    def strategy(self, name: str, workload: Workload) -> Exploration:
        """A strategy, ready to sample. Without stops the thinking part never ends either, so it explores throughout."""
        task = workload.task
        strategy = STRATEGIES[name]() if workload.lengths is None else Ending(workload.lengths)
        vocabulary = causal.vocabulary(self.tokenizer, self.model, task.answer_start, task.answer_prefix)
        if not workload.stops:
            endless = (NEVER,) * len(vocabulary.answer_start)
            stops = (NEVER,) if workload.lengths is None else vocabulary.stops
            vocabulary = replace(vocabulary, stops=stops, answer_start=endless)
        table = self.model.table.detach()
        strategy.bind(vocabulary, table)
        strategy.prepare(table, 0, self.model.head.detach())
        return strategy

    def ours(self, name: str, workload: Workload) -> Callable[[], Tensor]:
        """This engine under a strategy; a call returns the lengths (B,) it has generated."""
        strategy, (ids, mask) = self.strategy(name, workload), self.prompts(workload)
        keys = row_keys([("benchmark", row) for row in range(workload.rows)], self.device)
        return lambda: generate(self.model, strategy, ids, mask, keys, workload.limit).lengths

    def theirs(self, workload: Workload, lengths: Tensor) -> Callable[[], Tensor]:
        """`generate` of transformers, its rows made to end at the lengths (B,) that this engine sampled."""
        ids, mask = self.prompts(workload)
        stop = StoppingCriteriaList([Lengths(lengths, ids.shape[1])])
        call = partial(
            self.peer.generate,
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=workload.group,
            max_new_tokens=workload.limit,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=stop,
        )

        def run() -> Tensor:
            made = call().shape[1] - ids.shape[1]
            assert made == int(lengths.max()), f"generate made {made} tokens, expected {int(lengths.max())}"
            return lengths

        return run


class Lengths(StoppingCriteria):
    """Ends row i after lengths[i] tokens. It stands in for the look at the end-of-text token, and costs no more."""

    def __init__(self, lengths: Tensor, prompt: int):
        self.lengths, self.prompt = lengths, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **ignored: Any) -> Tensor:  # pyright: ignore
        return self.lengths <= input_ids.shape[1] - self.prompt


class Ending(TokenSampling):
    """Token sampling whose row i ends with a stop as its lengths[i]-th token, whatever the model says."""

    def __init__(self, lengths: Tensor):
        super().__init__()
        self.lengths = lengths

    def start(self, rows: int, device: torch.device) -> State:
        return {**super().start(rows, device), "left": self.lengths.to(device)}

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        step, state = super().sample(logits, state, draws, table)
        tokens = step.tokens.masked_fill(state["left"] == 1, self.vocabulary.stops[0])
        return replace(step, tokens=tokens), {**state, "left": state["left"] - 1}
