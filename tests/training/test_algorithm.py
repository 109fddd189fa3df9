"""What an algorithm adds to the training step: filters and resampling, critic, selections, entropy."""

import functools

import pytest
import torch
from strategies import neighbor_mix
from torch.nn import functional as F
from updates import (
    NO_KL,
    TINY,
    Still,
    Watched,
    difference_of_two_processes,
    difficulty,
    fit,
    made,
    make,
    ppo,
    shared_ppo,
    verdicts,
)

from ngrpo.algorithm import advantages, groups, selections
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.loading import load
from ngrpo.rollout.join import join, join_rollouts
from ngrpo.rollout.sampling import groups_of
from ngrpo.training.collect import problems_of
from ngrpo.training.replay import replay

# --- group filter and resampling ----------------------------------------------------------------------------------------


def easy_or_mixed(problem, index) -> bool:
    return difficulty(problem) == 0 or (difficulty(problem) == 1 and index == 0)


def test_refused_groups_are_replaced_by_whole_groups_of_other_prompts():
    parts = fit(made(wanted=easy_or_mixed, group_filter=groups.mixed, max_resamples=8))
    answers, metrics = parts.outcomes[0].answers, parts.outcomes[0].metrics
    assert len(answers.problems) == 4 and all(difficulty(problem) == 1 for problem in answers.problems)
    assert [score.outcome for score in answers.scores] == ["correct", "wrong", "wrong", "wrong"] * 4
    assert 1 < metrics["draws"] <= 9 and 0 < metrics["kept"] < 1


def test_resampling_is_bounded_and_what_fills_the_batch_enters_no_loss():
    only = [problem.id for problem in problems_of(made().task, made().policy.config, 1)][:1]
    wanted = functools.partial(lambda ids, problem, index: problem.id in ids and index == 0, only)
    filtered = fit(made(Still, wanted, dtype="float64", group_filter=groups.mixed, max_resamples=2))
    assert filtered.outcomes[0].metrics["draws"] == 3
    # The other groups are all wrong, so they have no advantage; under a token mean only their tokens would count.
    alone = fit(made(Still, wanted, dtype="float64", group_filter=groups.mixed, max_resamples=0))
    torch.testing.assert_close(filtered.gradients[0], alone.gradients[0], rtol=1e-9, atol=1e-15)
    everyone = fit(made(Still, wanted, dtype="float64"))
    cosine = F.cosine_similarity(everyone.gradients[0], alone.gradients[0], dim=0)
    assert cosine > 1 - 1e-9 and everyone.gradients[0].norm() < 0.5 * alone.gradients[0].norm()


def test_nothing_kept_means_no_step():
    parts = made(wanted=lambda problem, index: False, group_filter=groups.mixed, max_resamples=1, learning_rate=1e-2)
    before = [p.detach().clone() for p in parts.policy.model.parameters()]
    metrics = fit(parts).outcomes[0].metrics
    assert metrics["grad_norm"] == metrics["loss"] == 0 and metrics["kept"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, parts.policy.model.parameters(), strict=True))


def test_draws_of_a_step_share_no_order():
    parts = made()
    orders = [tuple(p.id for p in problems_of(parts.task, parts.policy.config, 1, draw)) for draw in range(4)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("strategy", [TokenSampling(1.0), neighbor_mix(rate=0.5, k=3)], ids=["tokens", "mixtures"])
def test_joined_batches_replay_like_their_parts(strategy):
    trained = fit(make(strategy, Watched, steps=2, dtype="float64"))
    model, parts = trained.policy.model, [outcome.answers for outcome in trained.outcomes]
    whole = join(parts, torch.tensor([5, 0, 7]))
    rollouts = join_rollouts([part.rollouts for part in parts])
    rows = torch.tensor([20, 21, 22, 23, 0, 1, 2, 3, 28, 29, 30, 31])
    assert [p.id for p in whole.problems] == [parts[1].problems[1].id, parts[0].problems[0].id, parts[1].problems[3].id]
    assert [s.reward for s in whole.scores] == [[*parts[0].scores, *parts[1].scores][i].reward for i in rows.tolist()]
    assert torch.equal(whole.rollouts.keys, rollouts.keys[rows]) and whole.rollouts.group_size == 4
    with torch.no_grad():
        expected = torch.cat([replay(model, strategy, part.rollouts).log_probs.sum(dim=1) for part in parts])[rows]
        torch.testing.assert_close(
            replay(model, strategy, whole.rollouts).log_probs.sum(dim=1), expected, rtol=1e-9, atol=1e-9
        )


# --- row filters --------------------------------------------------------------------------------------------------------


def test_dropped_answers_leave_loss_and_denominator():
    signed = functools.partial(advantages.signed, correct=1.0, wrong=-1.0)
    nsr = fit(made(Still, dtype="float64", advantage=signed, row_filter=groups.wrong_only)).gradients[0]
    only = functools.partial(advantages.signed, correct=0.0, wrong=-1.0)
    weighted = fit(made(Still, dtype="float64", advantage=only))
    rollouts = weighted.outcomes[0].answers.rollouts
    share = rollouts.loss_mask.view(4, 4, -1)[:, 1:].sum() / rollouts.loss_mask.sum()
    assert (nsr * share - weighted.gradients[0]).norm() / nsr.norm() < 1e-6


# --- critic -------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_state_before_each_token():
    parts = fit(ppo(kind=Still, learning_rate=0.0))
    policy = parts.policy
    assert policy.critic is not None
    rollouts = parts.outcomes[0].answers.rollouts
    values = policy.critic.values(policy.strategy, rollouts, 3)
    for row in (0, 5, 15):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        hidden = policy.critic.model.model.model(torch.cat((prompt, answer))[None]).last_hidden_state[0]
        expected = policy.critic.head(hidden)[len(prompt) - 1 : -1, 0]
        torch.testing.assert_close(values[row, : len(answer)], expected, rtol=1e-9, atol=1e-9)
        assert not values[row, len(answer) :].any()


def test_the_gradients_of_policy_and_critic_are_those_of_the_formulas():
    parts = fit(ppo(kind=Still, micro_batch_rows=5))
    policy, critic = parts.policy, parts.policy.critic
    assert critic is not None
    answers = parts.outcomes[0].answers
    rollouts, mask = answers.rollouts, answers.rollouts.loss_mask
    values = critic(policy.strategy, rollouts)
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64)
    returns = rewards[:, None] * mask  # gamma = lambda = 1 and one reward at the end
    raw = (returns - values.detach()) * mask
    white = (raw - raw[mask].mean()) / (raw[mask].var() + 1e-8).sqrt() * mask
    log_probs = replay(policy.model, policy.strategy, rollouts).log_probs
    loss = -((log_probs - log_probs.detach()).exp() * white * mask).sum() / mask.sum()
    loss = loss + (0.5 * (values - returns).square() * mask).sum() / mask.sum()
    learners = [p for p in (*policy.model.parameters(), *critic.parameters()) if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, learners)])
    assert (parts.gradients[0] - expected).norm() / expected.norm() < 1e-6


def test_a_critic_learns_comes_back_from_a_checkpoint_and_keeps_its_table(tmp_path):
    policy = fit(ppo(dtype="float32", steps=2), tmp_path).policy
    assert policy.critic is not None
    table = load(TINY).table
    assert torch.equal(policy.critic.model.table, table) and policy.critic.head.bias.abs() > 0
    other = fit(ppo(dtype="float32", steps=2), tmp_path)
    assert not other.outcomes, "no step is left"
    for name, value in policy.critic.state_dict().items():
        assert torch.equal(other.policy.critic.state_dict()[name], value)  # pyright: ignore


def test_a_critic_lowers_its_loss_on_rewards_that_the_prompt_tells():
    parts = ppo(dtype="float32", steps=12, learning_rate=0.0)
    verdicts(parts.task, lambda problem, index: True)
    found = [outcome.metrics["value_loss"] for outcome in fit(parts).outcomes]
    assert found[-1] < 0.2 * found[0]


def test_two_processes_have_the_gradients_of_one_with_a_critic(tmp_path):
    assert difference_of_two_processes(tmp_path, shared_ppo) < 1e-5


# --- entropy, likeliest tokens, selections ------------------------------------------------------------------------------


def test_replay_gives_entropy_and_likeliest_tokens_of_the_raw_logits():
    parts = fit(make(TokenSampling(0.7), Watched, learning_rate=0.0))
    policy, rollouts = parts.policy, parts.outcomes[0].answers.rollouts
    found = replay(policy.model, policy.strategy, rollouts, entropy=True, top_k=3)
    assert found.entropy is not None and found.top_log_probs is not None and found.greedy is not None
    assert rollouts.entropy is not None
    torch.testing.assert_close(found.entropy, rollouts.entropy.double(), rtol=0, atol=1e-6)
    for row in (0, 9):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        answer = rollouts.steps.tokens[row][rollouts.mask[row]]
        logits = policy.model.model(torch.cat((prompt, answer))[None]).logits[0, len(prompt) - 1 : -1]
        top = logits.log_softmax(-1).topk(3)
        torch.testing.assert_close(found.top_log_probs[row, : len(answer)], top.values, rtol=1e-9, atol=1e-9)
        assert torch.equal(found.greedy[row, : len(answer)], top.indices[:, 0] == answer)


def test_an_entropy_bonus_adds_the_gradient_of_the_entropy():
    plain, bonus = (fit(make(kind=Still, entropy_bonus=weight)).gradients[0] for weight in (0.0, 0.3))
    parts = fit(make(kind=Still))
    policy, rollouts = parts.policy, parts.outcomes[0].answers.rollouts
    entropy = replay(policy.model, policy.strategy, rollouts, entropy=True).entropy
    assert entropy is not None
    mean = (entropy * rollouts.loss_mask).sum() / rollouts.loss_mask.sum()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(policy.model.parameters()))])
    assert (bonus - plain + 0.3 * slope).norm() / slope.norm() < 1e-6


def test_a_selection_sees_old_log_probs_and_the_loss_gets_it():
    seen = []

    def select(tokens):
        seen.append(tokens)
        return selections.high_entropy(tokens, share=0.5)

    parts = fit(make(kind=Watched, select=select, loss=selections.selected_only, micro_batch_rows=5))
    tokens, rollouts = seen[0], parts.outcomes[0].answers.rollouts
    torch.testing.assert_close(tokens.log_probs, rollouts.log_probs.to(tokens.log_probs), rtol=0, atol=1e-5)
    assert 0.499 < parts.outcomes[0].metrics["selected"] < 0.6
    assert ((tokens.uniform >= 0) & (tokens.uniform < 1)).all() and len(
        tokens.uniform.unique()
    ) == tokens.uniform.numel()


def test_reward_shaping_runs_in_order_and_keeps_the_verdicts():
    parts = fit(made(reward_shaping={
        "overlong": functools.partial(groups.overlong_punishment, buffer=16),
        "unlikeliness": functools.partial(groups.unlikeliness, strength=0.5),
    }))  # fmt: skip
    facts = groups_of(parts.outcomes[0].answers, parts.sampler)
    shaped = parts.policy.algorithm.shaped(facts).rewards
    punished = facts.rewards - ((facts.lengths - 16).clamp(min=0) / 16).clamp(max=1).double()
    assert torch.equal(shaped[:, 1:], punished[:, 1:])  # wrong answers
    assert (shaped[:, 0].abs() <= punished[:, 0].abs()).all() and NO_KL["coefficient"] == 0
