"""What one method brings as a knob stands over another one's algorithm, on the command line as its file says."""

from pathlib import Path
from types import SimpleNamespace

import configurations
import pytest
import torch
from hydra import compose

from ngrpo import build
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.inputs import Groups
from ngrpo.cli.command import examine
from ngrpo.composed import instantiate

FOCAL = "algorithm.reweight={_target_: ngrpo.algorithm.groups.focal, _partial_: true, gamma: 0.5}"


def answered(*right: int) -> Groups:
    """Groups of eight with so many right answers, none of them long."""
    rewards = torch.tensor([[1.0] * count + [0.0] * (8 - count) for count in right], dtype=torch.float64)
    ones = torch.ones_like(rewards).long()
    return Groups(rewards, rewards > 0, ones, ones > 1, -rewards, ones > 0, ones, 96)


@pytest.mark.parametrize("name", ["dapo", "cispo"])
def test_the_focal_weight_stands_over_another_algorithm(name):
    assert examine("config", [f"algorithm={name}", FOCAL]).problems == []
    with configurations.composing():
        plain, focal = (compose("config", [f"algorithm={name}", *more]).algorithm for more in ([], [FOCAL]))
    given, mask = answered(1, 4, 7), torch.ones(24, 3, dtype=torch.bool)
    found = []
    for node in (plain, focal):
        algorithm: Algorithm = instantiate(node)
        found.append(algorithm.group_advantages(algorithm.shaped(given), 0.0, mask))
    weight = (1 - torch.tensor([1.0, 4.0, 7.0]).repeat_interleave(8)[:, None] / 8).sqrt()
    torch.testing.assert_close(found[1], found[0] * weight, rtol=1e-6, atol=0)
    assert found[1][0, 0].item() == pytest.approx(2.315032, abs=1e-5)


FORMAT = "+extra_rewards.format={_target_: ngrpo.tasks.rewards.well_formed, weight: 0.1}"
OVER = "algorithm.reweight={_target_: ngrpo.algorithm.groups.over_success_rate, _partial_: true}"
FORBIDDEN = {
    "extra_rewards.format": ["algorithm=max_rl", FORMAT],
    "algorithm.reward_shaping.overlong": ["algorithm=dapo", OVER],
    "algorithm.critic": ["algorithm=ppo", FOCAL],
    "algorithm.control": ["algorithm=lope", "reward_shaping=shuffled"],
}


@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_forbidden_combination_ends_a_run_before_a_model_is_loaded(key, monkeypatch):
    def load(*given):
        raise LookupError("a model was loaded")

    monkeypatch.setattr(build, "causal_model", load)
    assert examine("config", FORBIDDEN[key]).problems == []
    for words, told in ((FORBIDDEN[key], f"^{key}: .*algorithm=grpo has neither$"), (["algorithm=grpo"], "was loaded")):
        with configurations.composing():
            config = compose("config", [*words, "trainer.threads=1", "engine=transformers"])
        request = SimpleNamespace(config=config, directory=Path("nowhere"), labels=lambda *groups: {})
        with pytest.raises((ValueError, LookupError), match=told) as refused:
            build.training(request, None)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(refused.value)
    assert getattr(refused.value, "exit_code", 2) == 2
