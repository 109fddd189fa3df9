"""Noise on parameters: what is perturbed and what is not, the weights of the loss, and how sigma is adapted."""

import copy

import pytest
import torch
from torch import nn
from updates import TINY, Still, Watched, fit, make, verdicts

from ngrpo.algorithm.correction import Correction
from ngrpo.exploration.param_noise import ParameterNoise
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.loading import load
from ngrpo.rundir import checkpoints
from ngrpo.targets import SettingsError
from ngrpo.training.replay import replay

WEIGHED = {"correction": "tis", "correction_cap": 10.0}


def noisy(sigma: float, step: int = 0, seed: int = 0, **settings) -> ParameterNoise:
    strategy = ParameterNoise(seed, sigma, **settings)
    strategy.step = step
    return strategy


def noise(strategy: ParameterNoise, model: nn.Module) -> dict[str, torch.Tensor]:
    """What is added to every parameter, in units of sigma."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with strategy.perturbed(model):
        return {name: (p.detach() - before[name]) / strategy.sigma for name, p in model.named_parameters()}


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_noise_is_standard_normal_times_sigma_on_every_parameter(make_model):
    model = make_model(dtype=torch.float64)
    found = noise(noisy(0.01), model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    whole = torch.cat([value.flatten() for value in found.values()])
    n = len(whole)
    assert abs(whole.mean()) < 4 / n**0.5 and abs(whole.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(whole.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    shapes = [value.flatten() for value in found.values() if value.shape == (32, 32)]
    together = torch.corrcoef(torch.stack(shapes)).fill_diagonal_(0)
    assert len(shapes) >= 4 and together.abs().max() < 4.5 / 1024**0.5, "parameters have noise of their own"


def test_only_mlp_layers_where_these_are_asked_for(make_model):
    model = make_model()
    found = noise(noisy(0.01, targets="mlp"), model)
    perturbed = {name for name, value in found.items() if value.any()}
    assert perturbed == {name for name in found if ".mlp." in name} and len(perturbed) == 6
    with (
        pytest.raises(SettingsError, match=r"exploration\.targets=all"),
        noisy(0.1, targets="mlp").perturbed(nn.Linear(2, 2)),
    ):
        pass


def test_noise_is_a_function_of_seed_and_step(make_model):
    first = noise(noisy(0.01), make_model(dtype=torch.float64))
    assert same(noise(noisy(0.01), make_model(dtype=torch.float64)), first)
    for other in (noisy(0.01, step=1), noisy(0.01, seed=1)):
        assert not any(torch.equal(value, first[name]) for name, value in noise(other, make_model()).items())


def test_weights_come_back_bit_by_bit_whatever_happens(make_model):
    model, strategy = make_model(), noisy(0.3)
    before = bits(model)
    with pytest.raises(KeyboardInterrupt), strategy.perturbed(model):
        assert not same(bits(model), before)
        raise KeyboardInterrupt
    assert same(bits(model), before)


def test_noise_is_added_once_and_stays_until_the_outer_end(make_model):
    model, strategy = make_model(), noisy(0.3)
    before = bits(model)
    with strategy.perturbed(model):
        within = bits(model)
        with strategy.perturbed(model):
            assert same(bits(model), within)
        assert same(bits(model), within) and not same(within, before)
    assert same(bits(model), before)


def test_without_noise_it_is_token_sampling_to_the_bit():
    ours, plain = (
        fit(make(strategy, Still, "float32", **settings))
        for strategy, settings in ((ParameterNoise(0, 0.0), {}), (TokenSampling(1.0), {}))
    )
    assert torch.equal(ours.gradients[0], plain.gradients[0]) and plain.gradients[0].norm() > 0
    assert abs(ours.outcomes[0].metrics["noise_kl"]) < 1e-6


def test_the_gradient_is_that_of_the_formula():
    """GRPO of the clean stock model, each token weighed by min(pi / pi~, cap); pi~ is the stock model with the noise on."""
    strategy, cap = ParameterNoise(0, 0.02), 1.1
    parts = make(strategy, Still, correction="tis", correction_cap=cap, micro_batch_rows=5)
    verdicts(parts.task, lambda problem, index: index % 2 == 0)
    fit(parts)
    rollouts, clean = parts.outcomes[0].answers.rollouts, load(TINY, "float64").model
    with strategy.perturbed(parts.policy.model):
        perturbed = copy.deepcopy(parts.policy.model).model
    clean.set_attn_implementation("sdpa")
    perturbed.set_attn_implementation("sdpa")
    terms, off = [], []
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt, answer = rollouts.prompts[row][rollouts.prompt_mask[row]], rollouts.steps.tokens[row, :length]
        text = torch.cat((prompt, answer[:-1]))[None]
        by_clean, by_perturbed = (
            model(text).logits[0, len(prompt) - 1 :].log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
            for model in (clean, perturbed)
        )
        torch.testing.assert_close(rollouts.log_probs[row, :length].double(), by_perturbed, rtol=0, atol=1e-5)
        off.append((by_perturbed - by_clean).detach())
        advantage = (0.5 if row % 2 == 0 else -0.5) / (1 / 3) ** 0.5  # two of four are right; sample deviation
        terms.append(-advantage * (-off[-1]).exp().clamp(max=cap) * by_clean)
    torch.cat(terms).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in clean.parameters() if p.grad is not None])
    assert (parts.gradients[0] - expected).norm() / expected.norm() < 1e-5
    figures, every = parts.outcomes[0].metrics, torch.cat(off)
    assert figures["noise_kl"] == pytest.approx(float(every.mean()), abs=1e-5) and float(every.abs().mean()) > 0.01
    assert 0 < figures["capped"] == pytest.approx(float((every < -torch.tensor(cap).log()).double().mean()), abs=1e-6)


def test_an_algorithm_looks_at_entropies_of_the_weights_that_it_trains():
    def shaped(tokens):
        return tokens.advantages

    parts = fit(make(ParameterNoise(0, 0.05), Watched, token_advantage=shaped, steps=1, learning_rate=0.0))
    rollouts, policy = parts.policy.rollouts[0], parts.policy
    expected = replay(policy.model, TokenSampling(1.0), rollouts, entropy=True).entropy
    found = policy.replayed(rollouts).entropy
    assert expected is not None and found is not None and rollouts.entropy is not None
    torch.testing.assert_close(found.double(), expected.detach().double(), rtol=0, atol=1e-5)
    assert (found - rollouts.entropy).abs().max() > 1e-3


def test_tokens_are_weighed_as_the_released_code_does():
    clean, by_noise = torch.tensor([[0.5, 3.0, -1.0]]), torch.zeros(1, 3)
    weights, kept = Correction("tis", cap=10.0).weigh(clean, by_noise, torch.ones(1, 3, dtype=torch.bool))
    assert weights[0].tolist() == pytest.approx([1.648721, 10.0, 0.367879], abs=1e-6) and kept.all()


@pytest.mark.parametrize(("found", "sigma"), [(0.005, 0.003960), (0.001, 0.004040), (0.003, 0.004), (0.0032, 0.004)])
def test_sigma_moves_by_a_hundredth_where_the_target_is_missed_by_a_tenth(found, sigma):
    strategy = ParameterNoise(0, 0.004, target_kl=0.003)
    strategy.adapt({"noise_kl": found})
    assert float(strategy.sigma) == pytest.approx(sigma, abs=5e-7)
    fixed = ParameterNoise(0, 0.004)
    fixed.adapt({"noise_kl": found})
    assert float(fixed.sigma) == 0.004


@pytest.mark.parametrize(("found", "sigma"), [(1.0, 1e-6), (0.0, 0.5)])
def test_an_adapted_sigma_stays_within_its_bounds(found, sigma):
    strategy = ParameterNoise(0, sigma, target_kl=0.003)
    strategy.adapt({"noise_kl": found})
    assert float(strategy.sigma) == sigma


def test_a_run_that_goes_on_has_the_sigma_it_had(tmp_path):
    """Four RL steps in one go, and two and two."""

    def made(steps: int):
        strategy = ParameterNoise(0, 0.004, target_kl=1e-5)
        return make(strategy, Watched, "float32", steps=steps, checkpoint_every=1, **WEIGHED)

    whole, _, last = (fit(made(steps), tmp_path / at) for steps, at in ((4, "one"), (2, "two"), (4, "two")))
    scales = [outcome.metrics["noise_scale"] for outcome in whole.outcomes]
    assert len(set(scales)) > 1 and scales[0] == 0.004
    assert [str(outcome.metrics) for outcome in last.outcomes] == [str(o.metrics) for o in whole.outcomes[2:]]
    assert same(bits(last.policy.model), bits(whole.policy.model))
    saved = checkpoints.newest(tmp_path / "two" / "checkpoints")
    assert saved is not None and saved[1]["strategy"]["sigma"] == whole.policy.strategy.sigma
