"""What is compared: this engine under each strategy, and `generate` of transformers, on one model and one workload.

It does not know how an arm is timed or reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ngrpo.engine import generate
from ngrpo.exploration.base import Exploration
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.keys import row_keys
from ngrpo.models import causal, files
from ngrpo.tasks.story_math import StoryMath

MODEL = "ngrpo/models/tiny_qwen2"
PEER_ATTENTION = "sdpa"  # what transformers takes by default; on a CPU its other kernel, eager, is slower still
NEVER = -2  # a token id that no model produces
BASELINE = "token_sampling"
STRATEGIES: dict[str, Callable[[], Exploration]] = {
    BASELINE: TokenSampling,
    "neighbor_mix": partial(NeighborMix, rate=0.1, k=3),
    "gaussian_noise": partial(GaussianNoise, rate=0.1, scale=0.33),
    "stht": partial(SoftTokens, soft_temperature=0.5, scale=0.33),
}


@dataclass(frozen=True)
class Workload:
    """P prompts, `group` completions each. `limit` is max_new_tokens; rows stop by themselves only where `stops`."""

    name: str
    task: StoryMath
    group: int
    limit: int
    stops: bool

    @property
    def rows(self) -> int:
        """B = P * G."""
        return len(self.task.problems) * self.group


def natural(limit: int) -> Workload:
    """Stories of every level side by side, so that answers end at very different lengths."""
    return Workload("natural lengths, 32 x 8", StoryMath("train", range(1, 9), 32), 8, limit, stops=True)


def equal(limit: int, prompts: int = 32, group: int = 8) -> Workload:
    """Every row runs to `limit` tokens, whatever it says."""
    name = f"equal lengths, {prompts} x {group}"
    return Workload(name, StoryMath("train", range(1, 9), prompts), group, limit, stops=False)


@dataclass(frozen=True)
class Bench:
    """The bundled model, loaded once for this engine and once as transformers has it."""

    model: causal.CausalModel
    peer: Any
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls) -> "Bench":
        """Both copies, in float32."""
        model, tokenizer = causal.load(MODEL), causal.load_tokenizer(MODEL)
        path = str(files.directory(MODEL) or MODEL)
        peer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=PEER_ATTENTION)
        peer.eval().generation_config.eos_token_id = None  # the workload says where rows end
        return cls(model, peer, tokenizer)

    def prompts(self, workload: Workload) -> tuple[Tensor, Tensor]:
        """Ids and mask (P, S), left-padded."""
        room = self.model.model.config.max_position_embeddings - workload.limit
        return causal.encode(self.tokenizer, [problem.prompt for problem in workload.task.problems], room)

    def strategy(self, name: str, workload: Workload) -> Exploration:
        """A strategy, ready to sample. Without stops the thinking part never ends either, so it explores throughout."""
        task, strategy = workload.task, STRATEGIES[name]()
        vocabulary = causal.vocabulary(self.tokenizer, self.model, task.answer_start, task.answer_prefix)
        if not workload.stops:
            endless = (NEVER,) * len(vocabulary.answer_start)
            vocabulary = replace(vocabulary, stops=(NEVER,), answer_start=endless)
        strategy.bind(vocabulary, self.model.table.detach())
        strategy.prepare(self.model.table.detach(), 0)
        return strategy

    def ours(self, name: str, workload: Workload) -> Callable[[], Tensor]:
        """This engine under a strategy; a call returns the lengths (B,) it has generated."""
        strategy, (ids, mask) = self.strategy(name, workload), self.prompts(workload)
        keys = row_keys([("benchmark", row) for row in range(workload.rows)])
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
