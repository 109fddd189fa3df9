"""Parts of weights, gradients and moments on several ranks do what whole ones do on one, and go from any number to any."""

import os
import resource
import shutil
import signal
from functools import partial
from typing import Any

import pytest
import torch
from ranks_together import codes, outcome
from strategies import neighbor_mix
from updates import TINY, Made, Still, Watched, fit, make, mixed, shared_ppo

from ngrpo.algorithm import groups
from ngrpo.exploration.param_noise import ParameterNoise
from ngrpo.exploration.rollout_dropout import RolloutDropout
from ngrpo.models.loading import load
from ngrpo.rundir import checkpoints
from ngrpo.training.reference import Reference

LORA = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
KL = {"coefficient": 0.1, "estimator": "k3", "placement": "loss"}


def token_mean(kind: type[Watched]) -> Made:
    return make(kind=kind, micro_batch_rows=5)


def with_reference(kind: type[Watched]) -> Made:
    """Of weights that are not the policy's, so that there is a divergence."""
    other = load(TINY, "float64")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.01)
    return make(kind=kind, micro_batch_rows=5, kl=KL, reference=Reference(other))


def with_adapters(kind: type[Watched]) -> Made:
    torch.manual_seed(0)  # of the adapters, whose first factor is drawn
    return make(neighbor_mix(rate=0.3, k=3), kind, model=load(TINY, "float64", lora=LORA), micro_batch_rows=5)


def recomputed(kind: type[Watched]) -> Made:
    return make(kind=kind, model=load(TINY, "float64", recompute=True), micro_batch_rows=5)


def dropped(kind: type[Watched]) -> Made:
    return make(RolloutDropout(0.2), kind, micro_batch_rows=5)


def noisy(kind: type[Watched]) -> Made:
    """So much noise that weights of the loss reach their cap."""
    return make(ParameterNoise(0, 0.02), kind, micro_batch_rows=5, correction="tis", correction_cap=1.1)


def three_steps(kind: type[Watched], steps: int = 3) -> Made:
    """Groups are chosen, so that ranks draw other numbers of times and make other numbers of passes."""
    return every_group(kind, steps, group_filter=groups.mixed, max_resamples=1)


def every_group(kind: type[Watched], steps: int = 3, **changes: Any) -> Made:
    """Steps that do not depend on the number of ranks, which choose groups each for itself."""
    return make(neighbor_mix(rate=0.3, k=3), kind, steps=steps, checkpoint_every=1, micro_batch_rows=3, **changes)


def in_single_precision(kind: type[Watched]) -> Made:
    return every_group(kind, model=load(TINY, "float32"))


two_steps = partial(three_steps, steps=2)
FAMILIES = (mixed, shared_ppo, token_mean, with_reference, with_adapters, recomputed, dropped, noisy)
QUICK = ((mixed, "fsdp"), (shared_ppo, "fsdp"))


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        pytest.param(family, strategy, marks=[] if (family, strategy) in QUICK else pytest.mark.slow)
        for strategy in ("fsdp", "ddp")
        for family in FAMILIES
    ],
)
def test_gradients_of_two_ranks_are_those_of_one_process(family, strategy, tmp_path):
    one = fit(family(Still)).gradients[0]
    two = outcome(family, tmp_path / "two", 2, strategy)[0]
    assert float((two - one).norm() / one.norm()) < 1e-5


PLACES = {"whole": (1, "auto"), "one": (1, "fsdp"), "two": (2, "fsdp")}


def assert_alike(run, other, tolerance: float) -> None:
    """The figures of the steps that both did, and the weights that came of them."""
    for here, there in zip(run["metrics"][::-1], other["metrics"][::-1], strict=False):
        assert here["reward"] == there["reward"]
        for name in ("loss", "grad_norm"):
            assert here[name] == pytest.approx(there[name], rel=tolerance, abs=tolerance * 1e-3)
    assert run["weights"].keys() == other["weights"].keys()
    for name, value in run["weights"].items():
        # AdamW moves an entry whose gradient is all rounding by the whole rate, 1e-4; lost moments would so move them all.
        assert float((value - other["weights"][name]).square().mean().sqrt()) <= tolerance * 1e-2, name


@pytest.mark.slow
@pytest.mark.parametrize("before", PLACES)
def test_a_run_goes_on_from_any_number_of_ranks_with_any(before, tmp_path):
    whole = outcome(every_group, tmp_path / "straight", *PLACES["whole"], Watched)
    outcome(partial(every_group, steps=2), tmp_path / "begun", *PLACES[before], Watched)
    for after, place in PLACES.items():
        shutil.copytree(tmp_path / "begun", tmp_path / after)
        assert_alike(outcome(every_group, tmp_path / after, *place, Watched), whole, 1e-4)


@pytest.mark.slow
def test_three_steps_in_single_precision_are_those_of_one_process(tmp_path):
    whole, cut = (outcome(in_single_precision, tmp_path / name, *PLACES[name], Watched) for name in ("whole", "two"))
    assert_alike(cut, whole, 1e-4)


class Dying(Watched):
    """The second rank is killed, or meets a full disk, once it has reached a phase of the second step."""

    phase = ""

    def reached(self, phase: str, steps: int = 2) -> None:
        if (phase, os.environ["LOCAL_RANK"], len(getattr(self, "rollouts", []))) == (self.phase, "1", steps):
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, batch, counts):
        self.reached("forward")
        loss, figures = super().forward(batch, counts)
        loss.register_hook(lambda gradient: self.reached("backward"))
        return loss, figures

    def state(self):
        self.reached("save")
        if self.phase == "full" and len(getattr(self, "rollouts", [])) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))  # of a part there are 10 MiB
        return super().state()


def dying(kind: type[Watched], phase: str) -> Made:
    parts = three_steps(Dying)
    policy, drawing = parts.policy, parts.sampler.engine.generate
    policy.phase = phase  # pyright: ignore

    def generate(*arguments):
        policy.reached("generate", 1)  # pyright: ignore
        return drawing(*arguments)

    parts.sampler.engine.generate = generate  # pyright: ignore
    return parts


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Three steps of two ranks that nothing happens to."""
    return outcome(three_steps, tmp_path_factory.mktemp("straight"), *PLACES["two"], Watched)


def test_a_run_of_two_ranks_goes_on_bit_for_bit(straight, tmp_path):
    outcome(two_steps, tmp_path / "cut", *PLACES["two"], Watched)
    assert_alike(outcome(three_steps, tmp_path / "cut", *PLACES["two"], Watched), straight, 0.0)


@pytest.mark.parametrize(
    "phase",
    ["save", *(pytest.param(name, marks=pytest.mark.slow) for name in ("generate", "forward", "backward", "full"))],
)
def test_a_rank_that_dies_ends_the_other_in_30_seconds_and_the_run_goes_on_bit_for_bit(phase, straight, tmp_path):
    first, second = codes(partial(dying, phase=phase), tmp_path / "run", *PLACES["two"], Watched)
    assert first == 1 and second == (1 if phase == "full" else -signal.SIGKILL)
    found = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert found and found[0] == 1
    assert_alike(outcome(three_steps, tmp_path / "run", *PLACES["two"], Watched), straight, 0.0)
