"""engine=vllm held against the reference engine: every strategy, however rows are put together. Run by `make test-vllm`."""

import copy
from dataclasses import fields

import pytest
import torch
from architectures import ARCHITECTURES, stock, with_heads_of
from engines import held
from strategies import neighbor_mix
from updates import TINY

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.parity import gaps
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.engines.vllm import installed
from ngrpo.rollout.engines.vllm.engine import VllmEngine
from ngrpo.rollout.records import DecodeStep, Vocabulary
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.story_math import StoryMath

if installed.found() is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)

HOSTED = installed.ARCHITECTURES
FAMILIES = ("bundled", "qwen3", "llama")
# Fewer slots than rows, prompts in several chunks, and so few blocks that rows must make room for one another.
# These are counted by vLLM's own statistics.
CRAMPED = {
    "rows": 10,
    "options": {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 8, "disable_log_stats": False},
}
LIMIT = 48
HEAD = 32  # the smallest head that vLLM's attention takes on a CPU


class Setting:
    """A model, its vocabulary, prompts, and the engine that serves all of its tests."""

    def __init__(self, model: CausalModel, words: Vocabulary, prompts: torch.Tensor, mask: torch.Tensor):
        self.model, self.words, self.prompts, self.mask = model, words, prompts, mask
        self.engine = VllmEngine(kv_cache_gib=0.03125, **CRAMPED)

    def preemptions(self) -> float:
        return sum(m.value for m in self.engine.llm.get_metrics() if m.name == "vllm:num_preemptions")


def stories(stop: tuple[str, ...] = (), count: int = 8, model: CausalModel | None = None):
    """The bundled model with prompts of its own task."""
    prompts, model = Prompts(load_tokenizer(TINY), PLAIN, room=400), model or load(TINY)
    task = prompts.read(StoryMath("train", [2], 64))
    words = vocabulary(prompts.tokenizer, model, "</think>", task.answer_prefix, stop)
    ids = [prompts.ids[problem.prompt, problem.is_message] for problem in task.problems[:count]]
    return model, words, *padded(ids, 0)


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, make_model, make_vocabulary, make_prompts):
    if request.param == "bundled":
        setting = Setting(*stories())
    else:
        given = {"tied": request.param == "llama", "head_dim": HEAD}
        words = make_vocabulary(request.param, **given)
        setting = Setting(make_model(request.param, **given), words, *make_prompts(8, longest=30))
    yield setting
    setting.engine.close()


@pytest.fixture(scope="module")
def bundled():
    setting = Setting(*stories())
    yield setting
    setting.engine.close()


def test_every_strategy_draws_and_is_fed_what_the_reference_says(served, strategy_name, make_strategy, make_keys):
    strategy = make_strategy(strategy_name, served.model, served.words)
    if served.engine.refuses(strategy, TINY):
        pytest.skip("refused")
    before = served.preemptions() if served.engine.llm else 0.0
    found, ours = held(served.engine, strategy, served.model, served.prompts, served.mask, make_keys(32), LIMIT)
    assert ours.group_size == 4 and served.preemptions() > before
    assert found.tokens > 8 * found.rows


@pytest.mark.parametrize(
    "name", [n for n, (kind, _) in ARCHITECTURES.items() if kind in HOSTED and n != "qwen2 window"]
)
def test_every_architecture_that_is_hosted_computes_what_the_reference_computes(name, ready, make_prompts, make_keys):
    model = CausalModel(stock(with_heads_of(name, HEAD), torch.float32))
    words = Vocabulary(59, (0, 1), (5, 7, 11, 17, 23, 31))
    prompts, mask = make_prompts(8, longest=16)
    engine = VllmEngine(kv_cache_gib=0.03125, rows=6, options={"max_num_batched_tokens": 16})
    try:
        for strategy, weights in ((TokenSampling(), model), (neighbor_mix(0.5, 3), changed(model))):
            ready(strategy, weights, words)
            found, _ = held(engine, strategy, weights, prompts, mask, make_keys(32), 16)
            assert found.tokens > 4 * found.rows and found.parted == 0
    finally:
        engine.close()


def same(ours, theirs) -> bool:
    return ours is theirs is None or torch.equal(ours, theirs)


def test_rate_zero_is_plain_sampling_to_the_bit(bundled, ready, make_keys):
    asked = (bundled.prompts, bundled.mask, make_keys(32), LIMIT)
    found = []
    for strategy in (TokenSampling(), neighbor_mix(0.0, 3)):
        ready(strategy, bundled.model, bundled.words)
        bundled.engine.sync(bundled.model, 0, strategy)
        found.append(bundled.engine.generate(strategy, *asked))
    for field in fields(DecodeStep):
        assert same(*(getattr(rollouts.steps, field.name) for rollouts in found)), field.name
    assert torch.equal(found[0].log_probs, found[1].log_probs) and found[1].steps.mix_ids is None


def test_rows_without_a_mixture_are_those_of_plain_sampling_whatever_their_neighbors_are_fed(bundled, ready, make_keys):
    asked = (bundled.prompts, bundled.mask, make_keys(64), LIMIT)
    plain, mixed = (ready(s, bundled.model, bundled.words) for s in (TokenSampling(), neighbor_mix(0.04, 3)))
    bundled.engine.sync(bundled.model, 0, plain, mixed)
    theirs, ours = (bundled.engine.generate(strategy, *asked) for strategy in (plain, mixed))
    untouched = (~ours.steps.explored).all(dim=1).nonzero().squeeze(1)
    assert 8 <= len(untouched) <= 56
    assert ours.rows(untouched).answer_ids() == theirs.rows(untouched).answer_ids()
    width = int(ours.lengths[untouched].max())
    off = ours.log_probs[untouched, :width] - theirs.log_probs[untouched, :width]
    assert off.abs().max() < 1e-5


def test_a_prompt_that_repeats_a_mixed_text_is_not_given_what_was_fed_there(bundled, ready, make_keys):
    mixing = ready(neighbor_mix(1.0, 3), bundled.model, bundled.words)
    bundled.engine.sync(bundled.model, 0, mixing)
    first = bundled.engine.generate(mixing, bundled.prompts, bundled.mask, make_keys(8), LIMIT)
    repeated = [
        torch.cat((prompt[there], tokens[mask])).numpy()
        for prompt, there, tokens, mask in zip(
            first.prompts, first.prompt_mask, first.steps.tokens, first.mask, strict=True
        )
    ]
    prompts, mask = padded(repeated, 0)
    plain = ready(TokenSampling(), bundled.model, bundled.words)
    ours = bundled.engine.generate(plain, prompts, mask, make_keys(8), 8)
    assert ours.answer_ids() == generate(bundled.model, plain, prompts, mask, make_keys(8), 8).answer_ids()
    assert gaps(bundled.model, plain, ours)[0] < 1e-4
    assert first.steps.explored.any(dim=1).all(), "every text was mixed"


def test_rows_end_with_the_token_in_which_a_stop_text_ends(bundled, ready, make_keys):
    model, prompts, mask = bundled.model, bundled.prompts, bundled.mask
    plain = ready(neighbor_mix(0.3, 3), model, bundled.words)
    first = generate(model, plain, prompts, mask, make_keys(32), LIMIT)
    stop = bundled.words.text(first.steps.tokens[0, 3:6].tolist())[1:-1]  # it begins and ends within tokens
    _, words, *_ = stories((stop,), model=model)
    _, ours = held(
        bundled.engine, ready(neighbor_mix(0.3, 3), model, words), model, prompts, mask, make_keys(32), LIMIT
    )
    ended = words.pieces.text(ours.steps.tokens[0][ours.mask[0]].tolist())  # pyright: ignore[reportOptionalMemberAccess]
    assert stop in ended and not ended.endswith(stop) and ours.lengths[0] < first.lengths[0]
    assert first.steps.explored.any() and len(ours.lengths.unique()) > 2


def changed(model: CausalModel) -> CausalModel:
    """Every parameter is another one."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num(1.0) * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_after_an_update_and_a_sync_the_weights_are_the_new_ones(
    make_model, make_vocabulary, make_prompts, ready, make_keys, tied, lora
):
    model = make_model("qwen3", tied=tied, head_dim=HEAD)
    words = make_vocabulary("qwen3", tied=tied, head_dim=HEAD)
    if lora:
        settings = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
        model = CausalModel(model.model, lora=settings)
    prompts, mask = make_prompts(8, longest=20)
    engine, strategy = VllmEngine(kv_cache_gib=0.03125, rows=32), ready(TokenSampling(), model, words)
    try:
        before, ours = held(engine, strategy, model, prompts, mask, make_keys(32), 24)
        later = changed(model)
        after, theirs = held(engine, strategy, later, prompts, mask, make_keys(32), 24)
        assert before.parted == after.parted == 0
        same = sum(one == other for one, other in zip(ours.answer_ids(), theirs.answer_ids(), strict=True))
        assert same < 24, "an update that changes nothing would show nothing"
    finally:
        engine.close()


def test_answers_of_two_thousand_tokens(ready, make_keys):
    model = load(TINY)
    config = copy.deepcopy(model.model.config)
    config.max_position_embeddings = 4096
    longer = CausalModel(type(model.model)(config).eval())
    longer.model.load_state_dict(model.model.state_dict())
    model, words, prompts, mask = stories(model=longer, count=2)
    endless = Vocabulary(words.size, words.reserved, (), words.answer_start, (), words.pieces, words.delimiter)
    strategy = ready(neighbor_mix(0.1, 3), longer, endless)
    engine = VllmEngine(kv_cache_gib=0.0625, rows=4)
    try:
        found, ours = held(engine, strategy, longer, prompts, mask, make_keys(4), 2048)
    finally:
        engine.close()
    assert found.parted == 0 and (ours.lengths == 2048).all()


def test_asleep_or_without_weights_it_does_not_generate(bundled, ready, make_keys):
    strategy = ready(TokenSampling(), bundled.model, bundled.words)
    engine = VllmEngine()
    with pytest.raises(RuntimeError, match="sync comes before generate"):
        engine.generate(strategy, bundled.prompts, bundled.mask, make_keys(8), 4)
    engine.sleep()
    engine.close()


def test_random_generators_and_threads_are_left_alone(make_model, make_vocabulary, ready):
    model = make_model("qwen3", head_dim=HEAD)
    strategy = ready(TokenSampling(), model, make_vocabulary("qwen3", head_dim=HEAD))
    torch.manual_seed(11)
    state, setter = torch.get_rng_state(), torch.set_num_threads
    engine = VllmEngine(kv_cache_gib=0.03125, rows=8)
    engine.sync(model, 0, strategy)
    engine.close()
    assert torch.equal(torch.get_rng_state(), state) and torch.set_num_threads is setter
