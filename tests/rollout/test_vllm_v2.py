"""The second model runner, a GPU's default, held against the reference engine on a CPU, its kernels interpreted."""

import os

import pytest
import torch
from architectures import stock, with_heads_of
from engines import held
from strategies import neighbor_mix
from updates import TINY

from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.rollout.engines.vllm import installed
from ngrpo.rollout.engines.vllm.engine import VllmEngine
from ngrpo.rollout.records import Vocabulary
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.story_math import StoryMath

if installed.found() is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("vLLM's second runner needs a process of its own: make test-vllm", allow_module_level=True)

LIMIT, GROUP = 16, 4


def runner(worker) -> str:
    """Inside vLLM: where the class of its model runner is from."""
    return type(worker.worker.model_runner).__module__


@pytest.fixture(scope="module")
def served():
    import interpreted

    interpreted.install()
    prompts, model = Prompts(load_tokenizer(TINY), PLAIN, room=400), load(TINY)
    task = prompts.read(StoryMath("train", [2], 64))
    words = vocabulary(prompts.tokenizer, model, "</think>", task.answer_prefix)
    asked = padded([prompts.ids[problem.prompt, problem.is_message] for problem in task.problems[:2]], 0)
    engine = VllmEngine(kv_cache_gib=0.03125, rows=8, options={"max_num_batched_tokens": 64, "max_model_len": 64})
    yield engine, model, words, asked
    engine.close()


def test_every_strategy_draws_and_is_fed_what_the_reference_says(served, strategy_name, make_strategy, make_keys):
    engine, model, words, (prompts, mask) = served
    strategy = make_strategy(strategy_name, model, words)
    if engine.refuses(strategy, TINY):
        pytest.skip("refused")
    found, ours = held(engine, strategy, model, prompts, mask, make_keys(2 * GROUP), LIMIT)
    assert engine.llm.collective_rpc(runner) == ["vllm.v1.worker.cpu.model_runner"]
    assert found.parted == 0 and ours.group_size == GROUP


def test_a_model_whose_rows_are_scaled_is_fed_what_the_reference_feeds(served, ready, make_prompts, make_keys):
    model = CausalModel(stock(with_heads_of("gemma3", 32), torch.float32))
    strategy = ready(neighbor_mix(0.5, 3), model, Vocabulary(59, (0, 1), (5, 7, 11, 17, 23, 31)))
    prompts, mask = make_prompts(2, longest=16)
    engine = VllmEngine(kv_cache_gib=0.03125, rows=8, options={"max_num_batched_tokens": 64})
    try:
        found, ours = held(engine, strategy, model, prompts, mask, make_keys(8), 8)
    finally:
        engine.close()
    assert found.parted == 0 and ours.steps.explored.any()
