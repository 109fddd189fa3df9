"""What is compared: this engine under each strategy, and `generate` of transformers, on one model and one workload."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from benchmarks import models
from ngrpo.exploration.base import Exploration, State
from ngrpo.exploration.gate import Gate
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.gumbel_soft import Gumbel
from ngrpo.exploration.mixing import Mixing
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.exploration.perturbed import PerturbedThinking
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.rollout.keys import Draws, row_keys
from ngrpo.rollout.records import DecodeStep, Rollouts, Vocabulary
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.story_math import StoryMath

PEER_ATTENTION = "sdpa"  # what transformers takes by default; on a CPU its other kernel, eager, is slower still
PAD = 0  # which no mask lets through
NEVER = -2  # a token id that no model produces
UNSAID = "\x00never\x00"  # a text that none does
BASELINE = "token_sampling"
STRATEGIES: dict[str, Callable[[], Exploration]] = {
    BASELINE: TokenSampling,
    "neighbor_mix": lambda: Mixing(Gate(0.1), Neighbors(3)),
    "gaussian_noise": lambda: Mixing(Gate(0.1), GaussianNoise(0.33), anchor="sampled", text_token="sampled"),
    "stht": lambda: SoftTokens(soft_temperature=0.5, scale=0.33),
    "gumbel_soft": lambda: PerturbedThinking(Gumbel()),
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
    """A model, loaded once for this engine and once for transformers."""

    model: CausalModel
    peer: Any
    tokenizer: PreTrainedTokenizerBase
    engine: Engine = field(default_factory=TransformersEngine)

    @classmethod
    def load(
        cls,
        name: str = "tiny",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        vocabulary: int | None = None,
        peer: bool = True,
    ) -> "Bench":
        """Loads both copies of a model of models.NAMES; peer=False leaves out the second."""
        model = CausalModel(models.stock(name, PEER_ATTENTION, device, dtype, vocabulary))
        other = models.stock(name, PEER_ATTENTION, device, dtype, vocabulary) if peer else None
        if other is not None:
            other.generation_config.eos_token_id = None  # pyright: ignore - the workload says where rows end
        return cls(model, other, models.tokenizer(name, vocabulary))

    @property
    def device(self) -> torch.device:
        """The device of both copies."""
        return self.model.table.device

    def read(self, workload: Workload) -> Prompts:
        """Every prompt of a workload as the model reads it."""
        prompts = Prompts(self.tokenizer, PLAIN, self.model.model.config.max_position_embeddings - workload.limit)
        prompts.read(workload.task)
        return prompts

    def prompts(self, workload: Workload) -> tuple[Tensor, Tensor]:
        """Ids and mask (P, S), left-padded."""
        read = self.read(workload).ids
        ids, mask = padded([read[problem.prompt, problem.is_message] for problem in workload.task.problems], PAD)
        return ids.to(self.device), mask.to(self.device)

    def vocabulary(self, workload: Workload) -> Vocabulary:
        """The vocabulary for strategies. Without stops the thinking part never ends either, so they explore throughout."""
        task = workload.task
        words = vocabulary(self.tokenizer, self.model, task.answer_start, task.answer_prefix)
        if workload.stops:
            return words
        stops = (NEVER,) if workload.lengths is None else words.stops
        return replace(words, stops=stops, answer_start=(NEVER,) * len(words.answer_start), delimiter=UNSAID)

    def strategy(self, name: str, workload: Workload) -> Exploration:
        """A strategy that the engine can sample with."""
        return self.ready(STRATEGIES[name]() if workload.lengths is None else Ending(workload.lengths), workload)

    def ready(self, strategy: Exploration, workload: Workload) -> Exploration:
        """Syncs the engine, binds and prepares the strategy, and returns it."""
        strategy.bind(self.vocabulary(workload), self.model.table.detach())
        self.engine.sync(self.model, 0, strategy)
        return strategy

    def rollouts(self, strategy: Exploration, workload: Workload) -> Callable[[], Rollouts]:
        """A call that generates with a strategy from `ready`; every call draws the same answers."""
        ids, mask = self.prompts(workload)
        keys = row_keys([("benchmark", row) for row in range(workload.rows)], self.device)
        return lambda: self.engine.generate(strategy, ids, mask, keys, workload.limit)

    def ours(self, name: str, workload: Workload) -> Callable[[], Tensor]:
        """The same, but the call returns the generated lengths (B,)."""
        rollouts = self.rollouts(self.strategy(name, workload), workload)
        return lambda: rollouts().lengths

    def theirs(self, workload: Workload, lengths: Tensor) -> Callable[[], Tensor]:
        """A call of transformers' `generate` whose rows end at the lengths (B,) that this engine sampled."""
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
            length = call().shape[1] - ids.shape[1]
            assert length == int(lengths.max()), f"generate made {length} tokens, expected {int(lengths.max())}"
            return lengths

        return run


class Lengths(StoppingCriteria):
    """Ends row i after lengths[i] tokens; replaces the check for the end-of-text token at the same cost."""

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

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        step, state = super().sample(logits, state, draws, table)
        tokens = step.tokens.masked_fill(state["left"] == 1, self.vocabulary.stops[0])
        return replace(step, tokens=tokens), {**state, "left": state["left"] - 1}
