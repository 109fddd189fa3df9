"""The training step: gradients against an independent computation, whatever the split into micro-batches or processes."""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import warm

from ngrpo.algorithm.algorithm import Algorithm, advantages, losses
from ngrpo.algorithm.losses import KL_ESTIMATORS
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models import causal
from ngrpo.rollout.records import NotFinite
from ngrpo.rollout.sampling import Sampler
from ngrpo.tasks.base import Score
from ngrpo.tasks.story_math import StoryMath
from ngrpo.training.collect import Training, problems_of
from ngrpo.training.policy import Policy
from ngrpo.training.reference import Reference

TINY = "ngrpo/models/tiny_qwen2"
NO_KL = {"coefficient": 0.0, "estimator": "k3", "placement": "loss"}


class Unrecorded:
    """A recorder that keeps the outcomes in memory."""

    def __init__(self):
        self.outcomes = []

    def restore(self):
        return 0, None

    def at(self, policy, step, outcome):
        if outcome is not None:
            self.outcomes.append(outcome)


class Still(Policy):
    """A policy that keeps the gradient of every update and never takes the step."""

    def _step(self, optimizer):
        gradient = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.gradients = [*getattr(self, "gradients", []), torch.cat([g.flatten().clone() for g in gradient])]
        return 0.0


def algorithm(**changes) -> Algorithm:
    parts = {
        "advantage": functools.partial(advantages.group_normalised, ddof=1, eps=1e-6),
        "loss": functools.partial(losses.clipped_surrogate, clip_low=0.2, clip_high=0.2),
        "aggregation": "token_mean",
        "kl": NO_KL,
    }
    return Algorithm(**{**parts, **changes})


def training(**changes) -> Training:
    parts = {
        "steps": 1, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-4, "seed": 3, "micro_batch_rows": 16,
        "weight_decay": 0.0, "betas": (0.9, 0.999), "max_grad_norm": 1.0, "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    return Training(**{**parts, **changes})


def make(strategy=None, kind=Still, dtype="float64", reference=None, model=None, **changes) -> Policy:
    model = model or causal.load(TINY, dtype)
    tokenizer, task = causal.load_tokenizer(TINY), StoryMath("train", [2], 64)
    strategy = strategy or TokenSampling(1.0)
    strategy.bind(causal.vocabulary(tokenizer, model, task.answer_start, task.answer_prefix), model.table.detach())
    plan = training(**{name: changes.pop(name) for name in list(changes) if name in Training.__dataclass_fields__})
    sampler = Sampler(model, tokenizer, strategy, 32)
    return kind(sampler, task, algorithm(**changes), plan, Unrecorded(), reference)  # pyright: ignore


def fit(policy: Policy, **options) -> Policy:
    from lightning.pytorch import Trainer

    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, **{"devices": 1, **quiet, **options})
    steps = range(policy.training_plan.steps + 1)
    trainer.fit(policy, torch.utils.data.DataLoader(steps, batch_size=None))
    return policy


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)


STRATEGIES = {
    "token_sampling": lambda: TokenSampling(0.8),
    "neighbor_mix": lambda: NeighborMix(rate=0.4, k=3, temperature=0.8),
    "gaussian_noise": lambda: GaussianNoise(rate=0.4, scale=0.3),
    "stht": lambda: SoftTokens(0.5, 0.33),
}


PAIRS = [(name, "token_mean") for name in STRATEGIES] + [("neighbor_mix", other) for other in losses.AGGREGATIONS]


@pytest.mark.parametrize(("name", "aggregation"), dict.fromkeys(PAIRS))
def test_micro_batches_do_not_change_the_gradient(name, aggregation):
    whole, split = (
        fit(make(STRATEGIES[name](), aggregation=aggregation, micro_batch_rows=rows)).gradients[0] for rows in (16, 3)
    )
    # Not closer: a prompt is read once for those of its rows that are together, and the stock norms round to float32.
    assert 0 < (split - whole).norm() < 1e-7 * whole.norm()


def test_the_gradient_is_that_of_the_formula():
    """GRPO by hand: unpadded forward passes of the stock model, one row at a time, float64."""
    policy = fit(make(aggregation="sequence_mean_token_mean"))
    outcome = policy.recorder.outcomes[0]
    rollouts, model = outcome.answers.rollouts, causal.load(TINY, "float64").model
    rewards = torch.tensor([score.reward for score in outcome.answers.scores], dtype=torch.float64).view(4, 4)
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(16):
        group = rewards[row // 4]
        advantage = (rewards.flatten()[row] - group.mean()) / (group.std() + 1e-6) if group.std() > 0 else 0.0
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        logits = model(torch.cat((prompt, answer))[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        loss = loss - (advantage * (log_probs - log_probs.detach()).exp()).mean() / 16
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (policy.gradients[0] - expected).norm() / expected.norm() < 1e-6  # advantages are float32


def test_rate_zero_gives_the_gradient_of_token_sampling_bit_by_bit():
    plain = fit(make(TokenSampling(1.0), dtype="float32")).gradients[0]
    for idle in (NeighborMix(rate=0.0, k=3), GaussianNoise(rate=0.0, scale=0.3)):
        assert torch.equal(fit(make(idle, dtype="float32")).gradients[0], plain)


def test_homogeneous_groups_leave_the_weights_alone():
    policy = make(kind=Policy, dtype="float32", steps=2)
    policy.task.score = lambda problems, texts: [Score(1.0, "correct", None, "") for _ in texts]
    before = [p.detach().clone() for p in policy.model.parameters()]
    fit(policy)
    assert len(policy.recorder.outcomes) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["token_sampling", "neighbor_mix", "gaussian_noise"])
def test_the_kl_to_an_equal_reference_is_zero(name):
    kl = {"coefficient": 0.1, "estimator": "k3", "placement": "loss"}
    reference = Reference(causal.load(TINY, "float64"))
    policy = fit(make(STRATEGIES[name](), Policy, reference=reference, kl=kl, steps=2, learning_rate=1e-3))
    first, second = (outcome.metrics["kl"] for outcome in policy.recorder.outcomes)
    assert abs(first) < 1e-12 and second > 1e-6


def test_kl_in_the_reward_moves_the_advantages():
    kl = {"coefficient": 0.5, "estimator": "k1", "placement": "reward"}
    policy = make(kl=kl, advantage=advantages.group_centred)
    answers = fit(policy).recorder.outcomes[0].answers
    old = answers.rollouts.log_probs
    reference = old - 0.1 * answers.rollouts.loss_mask
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64)
    rewards = (rewards - 0.5 * 0.1 * answers.rollouts.loss_mask.sum(dim=1)).view(4, 4)
    expected = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64).view(4, 4)
    penalty = 0.5 * KL_ESTIMATORS["k1"](old, reference)
    made = policy._group_advantages(answers.rollouts, rewards, penalty)[:, 0].double()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_later_updates_see_ratios_and_clip():
    several = {"inner_epochs": 3, "mini_batches": 2, "learning_rate": 1e-3}
    policy = fit(make(NeighborMix(rate=0.3, k=3), Policy, dtype="float32", **several))
    metrics = policy.recorder.outcomes[0].metrics
    assert metrics["clip_fraction"] > 0 and math.isfinite(metrics["loss"])
    still = fit(make(NeighborMix(rate=0.3, k=3), Policy, dtype="float32", **{**several, "learning_rate": 0.0}))
    assert still.recorder.outcomes[0].metrics["clip_fraction"] == 0
    assert still.recorder.outcomes[0].metrics["engine_gap"] < 1e-5


def test_mini_batches_cover_every_row_once():
    whole = fit(make(aggregation="sequence_mean_token_sum")).gradients[0]
    halves = fit(make(aggregation="sequence_mean_token_sum", mini_batches=2)).gradients
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-9, atol=1e-12 * float(whole.abs().max()))


def test_weights_that_are_not_finite_stop_the_run():
    model = causal.load(TINY)
    model.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"RL step 1.*finite"):
        fit(make(kind=Policy, model=model))


def test_a_gradient_that_is_not_finite_stops_the_run():
    def broken(log_probs, old, advantages, mask):
        return losses.TokenLoss(log_probs * math.inf, torch.zeros_like(mask))

    with pytest.raises(NotFinite, match="gradient"):
        fit(make(kind=Policy, dtype="float32", loss=broken))


def test_every_pass_shows_every_problem_once():
    task, plan = StoryMath("train", [2], 12), training(prompts_per_step=4, steps=6)
    passes = [[p.id for step in steps for p in problems_of(task, plan, step)] for steps in ((1, 2, 3), (4, 5, 6))]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(task.problems[i].id for i in range(12))
    assert passes[0] != passes[1]


def written_gradient(target: Path) -> type[Still]:
    """A policy whose first rank leaves its gradients in a file."""

    class Written(Still):
        def on_train_end(self):
            if self.global_rank == 0:
                torch.save(self.gradients, target)

    return Written


def mixed(kind: type[Policy]) -> Policy:
    return make(NeighborMix(rate=0.3, k=3), kind, micro_batch_rows=5, aggregation="sequence_mean_token_mean")


def gradient_of(processes: int, target: Path, build: Callable[[type[Policy]], Policy]) -> None:
    """Runs in a child of its own: one RL step on `processes` ranks."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    options = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    fit(build(written_gradient(target)), use_distributed_sampler=False, **options)


def difference_of_two_processes(folder: Path, build: Callable[[type[Policy]], Policy]) -> float:
    """Relative, of the gradient of two processes to that of one."""
    for processes in (1, 2):
        child = warm.server.Process(target=gradient_of, args=(processes, folder / f"{processes}.pt", build))
        child.start()
        child.join(timeout=120)
        assert child.exitcode == 0
    one, two = (torch.load(folder / f"{processes}.pt", weights_only=True)[0] for processes in (1, 2))
    return float((one - two).norm() / one.norm())


def test_two_processes_have_the_gradient_of_one(tmp_path):
    assert difference_of_two_processes(tmp_path, mixed) < 1e-5


def test_a_checkpoint_holds_plain_containers_and_brings_everything_back(tmp_path):
    from ngrpo.rundir import checkpoints

    policy = fit(make(NeighborMix(rate=0.3, k=3), Policy, dtype="float32", steps=2))
    checkpoints.save(tmp_path, 2, policy.state())
    step, state = checkpoints.newest(tmp_path)
    other = make(NeighborMix(rate=0.3, k=3), Policy, dtype="float32", steps=2)
    other.resumed, other.done = state, step
    fit(other)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
    assert torch.equal(other.strategy.neighbors.ids, policy.strategy.neighbors.ids)
    states = [p.optimizers(use_pl_optimizer=False).state.values() for p in (policy, other)]
    moments = [torch.cat([state["exp_avg"].flatten() for state in part]) for part in states]
    assert torch.equal(*moments) and moments[0].norm() > 0
