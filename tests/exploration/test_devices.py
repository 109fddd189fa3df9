"""What an accelerator is spared and gives all the same: no decode step is waited for, and another way leads to equal results.

Tensors of the device "meta" have shapes and no values, so whatever asks for a value of theirs raises.
"""

from contextlib import nullcontext

import pytest
import torch
from places import CONF
from torch.nn import functional as F

from ngrpo.exploration import base, stht, topk_gumbel_select
from ngrpo.rollout.engines import transformers as engine
from ngrpo.rollout.keys import Draws, philox
from ngrpo.rollout.records import DecodeStep
from ngrpo.training.replay import replay

ROWS, SIZE, META = 5, 64, torch.device("meta")
# Settings that lead through other lines than those of conf/exploration.
SETTINGS = {
    "neighbor_mix": [
        {"weights": "filtered", "top_p": 0.9}, {"anchor": "sampled"}, {"text_token": "sampled"}, {"rate": None},
        {"entropy_threshold": 0.5}, {"compat": "released_sglang"}, {"loss_on_mixed_steps": "mask"},
    ],
    "orthogonal_noise": [{"noise": "elementwise"}],
    "topk_gumbel_select": [{"text_token": "sampled"}, {"rate": None}],
    "gumbel_soft": [{"clamp": None, "thinking_top_p": 1.0}],
    "stht": [{"think_limit": 1}, {"soft_temperature": 1e-4}],
    "token_sampling": [{"top_p": 0.5}],
    "soft_thinking": [{"low_steps": 1, "entropy_threshold": 9.0}],
}  # fmt: skip


PAIRS = [(path.stem, {}) for path in sorted((CONF / "exploration").glob("*.yaml"))]
PAIRS += [(name, changes) for name, several in SETTINGS.items() for changes in several]
every_setting = pytest.mark.parametrize(("strategy_name", "changes"), PAIRS, ids=str)


def draws_on(device: torch.device, time: int) -> Draws:
    """Of one decode step, as the engine takes them from a block."""
    block = engine.draws_from(torch.arange(ROWS, device=device), 0)
    return block[torch.arange(ROWS, device=device), time]


@every_setting
def test_no_decode_step_reads_a_value_back(
    strategy_name, changes, make_strategy, make_model, make_vocabulary, monkeypatch
):
    model = make_model()
    strategy = make_strategy(strategy_name, model, make_vocabulary(), **changes).to(META)
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # it knows no such device
    table, rows = torch.empty(model.table.shape, device=META), engine.Decoding(ROWS, strategy, META)
    state = strategy.start(ROWS, META)
    for time in range(3):
        logits, draws = torch.empty(ROWS, SIZE, device=META), draws_on(META, time)
        step, log_prob, state = strategy.sample_and_log_prob(logits, state, draws, table)
        rows.record(step, log_prob, engine.entropy(logits))
        fed = strategy.embed(step, table, draws)
        assert fed.shape == table[:ROWS].shape and log_prob.shape == (ROWS,)
        assert all(value.is_meta for value in (fed, log_prob, step.tokens, step.role, step.explored, *state.values()))


def test_values_of_the_device_meta_cannot_be_read():
    """What the test above rests on."""
    value = torch.empty(3, device=META) > 0
    for read in (lambda: bool(value.any()), lambda: value.nonzero(), lambda: value[0].item(), lambda: value[value]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Called, it makes strategies work on all places from then on, where a CPU would count those that matter."""

    def switch() -> None:
        for module in (base, stht, topk_gumbel_select):
            monkeypatch.setattr(module, "chosen_places", lambda where: ...)

    return switch


def test_every_strategy_that_chooses_places_is_switched(as_on_an_accelerator):
    """A module that takes the function by name would otherwise keep the way of a CPU, and nothing would be compared."""
    import pkgutil
    from importlib import import_module

    from ngrpo import exploration

    as_on_an_accelerator()
    for module in pkgutil.iter_modules(exploration.__path__):
        chosen = vars(import_module(f"ngrpo.exploration.{module.name}")).get("chosen_places")
        assert chosen is None or chosen(torch.ones(2, dtype=torch.bool)) is ..., module.name


def close(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@every_setting
def test_a_step_is_the_same_on_an_accelerator(
    strategy_name, changes, make_strategy, make_model, make_vocabulary, as_on_an_accelerator
):
    """Rows that think, that open their answer by the delimiter, and that would say a reserved token or a stop."""
    model, vocabulary = make_model(), make_vocabulary()
    table, generator = model.table.detach(), torch.Generator().manual_seed(0)
    told = [*vocabulary.answer_start, 7, vocabulary.stops[0], vocabulary.reserved[0]]
    every = [2 * torch.randn(ROWS, SIZE, generator=generator) for _ in told]
    for logits, token in zip(every, told, strict=True):
        logits[0] += 60 * F.one_hot(torch.tensor(token), SIZE)

    def decoded() -> list[tuple[DecodeStep, torch.Tensor, torch.Tensor, torch.Tensor]]:
        strategy = make_strategy(strategy_name, model, vocabulary, **changes)
        state, found = strategy.start(ROWS, torch.device("cpu")), []
        for time, logits in enumerate(every):
            draws = draws_on(torch.device("cpu"), time)
            step, log_prob, state = strategy.sample_and_log_prob(logits, state, draws, table)
            found.append((step, log_prob, strategy.log_prob(step, logits, table), strategy.embed(step, table, draws)))
        return found

    ours = decoded()
    as_on_an_accelerator()
    for (step, *numbers), (other, *others) in zip(ours, decoded(), strict=True):
        for name in ("tokens", "role", "explored"):
            assert torch.equal(getattr(step, name), getattr(other, name)), name
        for name in ("mix_ids", "mix_weights", "scores", "scale", "offset"):
            if name.startswith("mix_") and step.mix_ids is None:  # a CPU leaves out a recipe that nothing needs
                assert getattr(other, name) is None or not step.explored.any()
            else:
                close(getattr(other, name), getattr(step, name))
        for number, same in zip(numbers, others, strict=True):
            close(same.detach(), number.detach())


@every_setting
def test_a_replay_and_its_gradient_are_the_same_on_an_accelerator(
    strategy_name, changes, make_strategy, make_model, make_vocabulary, make_rollouts, as_on_an_accelerator
):
    model, vocabulary = make_model(dtype=torch.float64), make_vocabulary()
    strategy = make_strategy(strategy_name, model, vocabulary, **changes)
    rollouts = make_rollouts(model, strategy)
    learners = [*model.parameters(), *strategy.parameters()]

    def replayed() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        log_probs = replay(model, strategy, rollouts).log_probs
        weighted = (log_probs * rollouts.draws.token * rollouts.loss_mask).sum()
        return log_probs.detach(), torch.autograd.grad(weighted, learners)

    log_probs, gradients = replayed()
    fed = strategy.embed(rollouts.steps, model.table.detach(), rollouts.draws).detach()
    as_on_an_accelerator()
    again, others = replayed()
    close(again, log_probs)
    where = rollouts.mask  # no step stands elsewhere
    close(strategy.embed(rollouts.steps, model.table.detach(), rollouts.draws).detach()[where], fed[where])
    for gradient, other in zip(gradients, others, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(other, gradient, rtol=1e-6, atol=1e-6 * max(1.0, gradient.abs().max().item()))
    made = make_rollouts(model, strategy)
    assert torch.equal(made.steps.tokens, rollouts.steps.tokens) and torch.equal(made.mask, rollouts.mask)
    close(made.log_probs, rollouts.log_probs)


def test_random_words_are_those_of_a_cpu_where_torch_makes_them(monkeypatch):
    """A CPU has numpy make them."""
    from ngrpo.rollout import keys

    generator = torch.Generator().manual_seed(0)
    counter = tuple(torch.randint(0, 2**32, (200,), generator=generator) for _ in range(4))
    key = torch.randint(-(2**63), 2**63 - 1, (200,), generator=generator)
    for ours, theirs in zip(keys._rounds(counter, key), philox(counter, key), strict=True):
        assert torch.equal(ours, theirs)
