"""All-wrong groups that are asked again: what is learned from whom, and that nothing else notices."""

import functools
from dataclasses import replace

import pytest
import torch
from strategies import neighbor_mix
from updates import Made, Stepping, Still, Watched, difference_of_two_processes, fit, make

from ngrpo.algorithm import groups
from ngrpo.algorithm.retry import Retry
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import row_key
from ngrpo.rollout.perturbed import Perturbed
from ngrpo.rollout.sampling import answer
from ngrpo.rundir import checkpoints
from ngrpo.tasks.base import Score
from ngrpo.training.collect import problems_of
from ngrpo.training.replay import replay

RETRY = Retry(prompts=3, answers=2, words=(2, 5), vocabulary="tokens", boundary=None)
STRATEGIES = {"tokens": lambda: TokenSampling(1.0), "mixtures": lambda: neighbor_mix(0.5, 3)}


def some(text: str, of: int = 6) -> bool:
    """One text in six, whichever it is: about half of the groups of four are all wrong."""
    return sum(map(ord, text)) % of == 0


def retrying(kind: type[Watched] = Stepping, right=some, retry: Retry | None = RETRY, **changes) -> Made:
    parts = make(kind=kind, retry=retry, **{"dtype": "float32", "learning_rate": 1e-3, **changes})
    verdict = {False: "wrong", True: "correct"}
    parts.task.score = lambda problems, texts: [Score(float(right(t)), verdict[right(t)], None, "") for t in texts]  # pyright: ignore
    perturbed = None if retry is None else Perturbed(retry, parts.sampler.prompts)
    return replace(parts, sampler=replace(parts.sampler, perturbed=perturbed))


def off_policy(parts: Made) -> torch.Tensor:
    """(B, T) of the first step."""
    found = parts.policy.batches[0].off_policy
    assert found is not None
    return found


def drawn_again(parts: Made, problem, step: int, draw: int = 0):
    """Texts, verdicts and log-probabilities of the second asking, one problem at a time."""
    assert parts.sampler.perturbed is not None
    asked = [parts.sampler.perturbed.prompt(problem, row_key(3, step, draw, problem.id, "filler", v)) for v in range(3)]
    identities = [(3, step, draw, problem.id, "retry", v, i) for v in range(3) for i in range(2)]
    return answer(parts.sampler, parts.task, [problem] * 3, identities, asked)


@pytest.mark.parametrize("name", STRATEGIES)
def test_right_answers_to_other_prompts_take_the_places_of_wrong_ones(name):
    """The rule again, a problem at a time: what the first asking gave, what the second one, and what the step trained on."""
    strategy = STRATEGIES[name]()
    parts = fit(retrying(strategy=strategy, dtype="float64"))
    plain = fit(retrying(strategy=strategy, dtype="float64", retry=None))
    made, first = (one.policy.rollouts[0] for one in (parts, plain))
    elsewhere = off_policy(parts)
    fresh = retrying(strategy=strategy, dtype="float64")
    fresh.sampler.engine.sync(fresh.policy.model, 0, fresh.policy.strategy)
    wrong, rescued, tokens = 0, 0, 0
    answers = parts.outcomes[0].answers
    assert torch.equal(made.prompts, first.prompts), "all are learned as answers to the problem's own prompt"
    for group, problem in enumerate(problems_of(parts.task, parts.policy.config, 1)):
        own = range(4 * group, 4 * group + 4)
        texts, scores = [answers.completions[i] for i in own], [answers.scores[i].outcome for i in own]
        kept = [plain.outcomes[0].answers.completions[i] for i in own]
        if any(map(some, kept)):
            assert texts == kept and not elsewhere[own].any()
            continue
        wrong += 1
        again = drawn_again(fresh, problem, 1)
        tokens += int(again.rollouts.lengths.sum())
        right = {text for text in again.completions if some(text)}
        count = min(3, sum(map(some, again.completions)))
        rescued += count > 0
        assert scores == ["correct"] * count + ["wrong"] * (4 - count)
        assert set(texts[:count]) <= right and texts[count:] == kept[count:]
        assert elsewhere[own].any(dim=1).tolist() == [True] * count + [False] * (4 - count)
        for i in list(own)[:count]:
            source = again.completions.index(answers.completions[i])
            length = int(again.rollouts.lengths[source])
            expected = again.rollouts.log_probs[source, :length]
            torch.testing.assert_close(made.log_probs[i, :length], expected, rtol=0, atol=1e-5)
    metrics = parts.outcomes[0].metrics
    assert wrong > rescued > 0, "else the case shows too little"
    assert (metrics["asked_again"], metrics["rescued"]) == (wrong / 4, rescued / 4)
    assert metrics["retry_tokens"] == tokens and metrics["engine_gap"] < 1e-6


def test_the_gradient_is_in_ratio_to_the_probability_after_the_words():
    """By hand in float64, with stock transformers for the probabilities under both prompts."""
    parts = fit(retrying(dtype="float64", micro_batch_rows=5))
    fresh = retrying(Still, dtype="float64")
    model, other = fresh.policy.model, off_policy(parts)
    rollouts, mask = parts.policy.rollouts[0], parts.policy.rollouts[0].loss_mask
    answers = parts.outcomes[0].answers
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64).view(4, 4)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).view(-1, 1)
    rows, asked = recorded(fresh), {}
    for row, text in enumerate(rows):
        ids = fresh.sampler.prompts.tokenizer(text)["input_ids"]
        asked[row] = stock(model, torch.tensor(ids), rollouts.steps.tokens[row][rollouts.mask[row]])
    new = replay(model, fresh.policy.strategy, rollouts).log_probs
    old = torch.zeros_like(new)
    for row, values in asked.items():
        old[row, : len(values)] = values
    assert other.any() and (old - new)[other & mask].abs().max() > 0.1 and (old - new)[~other & mask].abs().max() < 1e-6
    ratio = (new - old.detach()).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[mask].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert (parts.gradients[0] - expected).norm() < 1e-6 * expected.norm()


def stock(model, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logits = model.model(torch.cat((prompt, tokens))[None]).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].detach()


def recorded(parts: Made) -> list[str]:
    """The column `prompt` of the samples of the first step."""
    found = []

    def step(number, rows, metrics, seconds, explored):
        found.append([row["prompt"] for row in rows])

    parts.recorder.step = step  # pyright: ignore
    fit(parts)
    return found[0]


def test_samples_tell_which_prompt_an_answer_was_given_to():
    parts = retrying()
    rows = recorded(parts)
    problems = problems_of(parts.task, parts.policy.config, 1)
    other = off_policy(parts)[:, 0].tolist()
    assert any(other) and not all(other)
    for row, (text, elsewhere) in enumerate(zip(rows, other, strict=True)):
        own = problems[row // 4].prompt
        assert (
            text == own if not elsewhere else text.endswith(f"\n{own}") and 2 <= text[: -len(own)].count(" ") + 1 <= 5
        )


def test_where_nothing_is_rescued_the_step_is_the_one_without_a_second_asking():
    never = functools.partial(some, of=10**9)
    parts, plain = (fit(retrying(right=never, retry=retry)) for retry in (RETRY, None))
    assert parts.outcomes[0].metrics["asked_again"] == 1 and parts.outcomes[0].metrics["rescued"] == 0
    assert torch.equal(parts.gradients[0], plain.gradients[0]) and not plain.gradients[0].any()
    always, alone = (fit(retrying(right=lambda text: True, retry=retry)) for retry in (RETRY, None))
    assert always.outcomes[0].metrics["asked_again"] == 0 and always.policy.batches[0].off_policy is None
    assert torch.equal(always.gradients[0], alone.gradients[0])


def test_micro_batches_change_nothing():
    whole, split = (fit(retrying(dtype="float64", micro_batch_rows=rows)).gradients[0] for rows in (16, 3))
    assert (whole - split).norm() < 1e-6 * whole.norm()


FILTERED = {"group_filter": groups.mixed, "max_resamples": 2, "prompts_per_step": 6}


@pytest.mark.parametrize("name", [pytest.param("tokens", marks=pytest.mark.slow), "mixtures"])
def test_a_run_that_stops_anywhere_goes_on_to_the_bit(name, tmp_path):
    """With a filter, so that rescued groups also wait for the next step and go through a checkpoint."""

    def trained(steps, folder):
        return fit(retrying(strategy=STRATEGIES[name](), steps=steps, **FILTERED), folder)

    whole, waited = trained(4, tmp_path / "whole"), False
    for stop in (1, 2, 3):
        trained(stop, tmp_path / str(stop))
        saved = checkpoints.newest(tmp_path / str(stop) / "checkpoints")
        assert saved is not None
        waited |= any(part is not None and part["asked"] is not None for part in saved[1]["waiting"])
        again = trained(4, tmp_path / str(stop))
        for one, other in zip(again.outcomes, whole.outcomes[stop:], strict=True):
            assert {n: v for n, v in one.metrics.items() if v == v} == {
                n: v for n, v in other.metrics.items() if v == v
            }
        for key, value in whole.policy.model.state_dict().items():
            assert torch.equal(again.policy.model.state_dict()[key], value)
    assert waited and sum(outcome.metrics["rescued"] for outcome in whole.outcomes) > 0


def test_a_filter_sees_groups_after_they_were_rescued():
    parts, plain = (fit(retrying(retry=retry, **FILTERED)) for retry in (RETRY, None))
    assert parts.outcomes[0].metrics["kept"] > plain.outcomes[0].metrics["kept"]
    assert off_policy(parts).any() and plain.policy.batches[0].off_policy is None


def shared(kind: type[Watched]) -> Made:
    return retrying(kind, dtype="float64", micro_batch_rows=5)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    assert difference_of_two_processes(tmp_path, shared) < 1e-5
