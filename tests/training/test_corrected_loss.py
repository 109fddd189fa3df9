"""Training on rollouts whose log-probabilities are off by a known amount."""

from dataclasses import replace

import pytest
import torch
from updates import TINY, Still, fit, make

from ngrpo.algorithm.correction import LARGE_GAP
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.loading import load


def shift(shape) -> torch.Tensor:
    """(B, T) float64: by how much the engine's log-probabilities are wrong, up to 1.5 either way."""
    return 3 * torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 1.5


class Shifted(Still):
    """A policy whose rollouts come from an engine that is `shift` off."""

    def batch(self, drawn, *others):
        rollouts = drawn.answers.rollouts
        off = rollouts.log_probs + shift(rollouts.mask.shape) * rollouts.loss_mask
        return super().batch(
            replace(drawn, answers=replace(drawn.answers, rollouts=replace(rollouts, log_probs=off))), *others
        )


# What is asked for, and by hand: the weight of a token and whether it stays, of w, of its answer's product, or of 1.
ASKED = {
    "tis, token": ("token", lambda w: (w.clamp(max=1.6), w > 0), {"correction": "tis"}),
    "tis, sequence": ("sequence", lambda w: (w.clamp(max=1.6), w > 0), {"correction": "tis"}),
    "mis, token": ("token", lambda w: (w.where(w <= 1.6, 0.0), w > 0), {"correction": "mis"}),
    "mis, sequence": ("sequence", lambda w: (w.where(w <= 1.6, 0.0), w > 0), {"correction": "mis"}),
    "rejection": (
        "token",
        lambda w: (torch.ones_like(w), (w >= 0.5) & (w <= 1.6)),
        {"correction": "rejection", "correction_floor": 0.5},
    ),
    "rejection and weights": (
        "sequence",
        lambda w: (w.clamp(max=1.6), (w >= 0.2) & (w <= 1.6)),
        {"correction": "rejection_tis", "correction_floor": 0.2},
    ),
}


def by_hand(parts, level: str, rule) -> torch.Tensor:
    """The gradient of GRPO times the weights: the stock model, one row at a time, float64."""
    outcome, model = parts.outcomes[0], load(TINY, "float64").model
    rollouts = outcome.answers.rollouts
    rewards = torch.tensor([score.reward for score in outcome.answers.scores], dtype=torch.float64).view(4, 4)
    loss, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in range(16):
        group = rewards[row // 4]
        advantage = (rewards.flatten()[row] - group.mean()) / (group.std() + 1e-6) if group.std() > 0 else 0.0
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        logits = model(torch.cat((prompt, answer))[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        difference = log_probs.detach() - rollouts.log_probs[row, : len(answer)].double()
        weight, stays = rule((difference if level == "token" else difference.sum().expand(len(answer))).exp())
        loss = loss - (advantage * weight * (log_probs - log_probs.detach()).exp() * stays).sum()
        tokens += int(stays.sum())
    (loss / tokens).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ASKED)
def test_the_corrected_gradient_is_that_of_the_formula(name):
    level, rule, asked = ASKED[name]
    settings = {"correction_level": level, "correction_cap": 1.6, **asked}
    parts = fit(make(TokenSampling(1.0), Shifted, **settings, micro_batch_rows=5))
    expected = by_hand(parts, level, rule)
    assert (parts.gradients[0] - expected).norm() / expected.norm() < 1e-5  # rollouts and advantages are float32
    uncorrected = fit(make(TokenSampling(1.0), Shifted)).gradients[0]
    assert (uncorrected - expected).norm() / expected.norm() > 0.1
    figures = parts.outcomes[0].metrics
    if "rejection" in name:
        assert 0 < figures["rejected"] < 1 and figures["kept_length"] > 0
    if name != "rejection":
        assert 0 < figures["effective_sample_size"] <= 1
    if "rejection" not in name:
        assert figures["engine_gap"] == pytest.approx(0.75, abs=0.1)


def test_where_everything_is_rejected_no_step_is_taken():
    asked = {
        "correction": "rejection",
        "correction_level": "sequence",
        "correction_floor": 0.999,
        "correction_cap": 1.0,
    }
    figures = fit(make(TokenSampling(1.0), Shifted, **asked)).outcomes[0].metrics
    assert (figures["rejected"], figures["kept_length"], figures["loss"], figures["grad_norm"]) == (1, 0, 0, 0)


def test_the_ratio_of_bypass_is_to_the_engine():
    """Its clipped surrogate: a ratio outside of 1 +- 0.2 has no gradient on the side that the advantage rewards."""
    parts = fit(make(TokenSampling(1.0), Shifted, correction="bypass"))
    assert parts.outcomes[0].metrics["clip_fraction"] > 0.2
    assert fit(make(TokenSampling(1.0), Shifted)).outcomes[0].metrics["clip_fraction"] == 0
    still = fit(make(TokenSampling(1.0), Still, correction="bypass")).gradients[0]
    plain = fit(make(TokenSampling(1.0), Still)).gradients[0]
    assert (still - plain).norm() / plain.norm() < 1e-5


@pytest.mark.parametrize("correction", ["tis", "mis"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_reference_engine_in_float32_needs_no_correction(correction, level):
    parts = fit(make(TokenSampling(1.0), Still, "float32", correction=correction, correction_level=level))
    figures = parts.outcomes[0].metrics
    assert figures["correction"] == pytest.approx(1, abs=1e-5)
    assert figures["effective_sample_size"] == pytest.approx(1, abs=1e-5)
    plain = fit(make(TokenSampling(1.0), Still, "float32"))
    difference = (parts.gradients[0] - plain.gradients[0]).norm() / plain.gradients[0].norm()
    assert difference < 1e-4
    assert "effective_sample_size" not in plain.outcomes[0].metrics


def test_a_run_whose_engine_is_far_off_says_so_once(capsys):
    def told(kind) -> int:
        parts = make(TokenSampling(1.0), kind, "float32", steps=3)
        parts.progress.console.quiet = False
        fit(parts)
        return capsys.readouterr().out.count(f"above {LARGE_GAP}")

    assert (told(Shifted), told(Still)) == (1, 0)
