"""The records: what they refuse, what an absent field means, what a part of them is."""

from dataclasses import fields, replace

import pytest
import torch

from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, DecodeStep, Rollouts, combine

B, S, T, K, D = 4, 5, 6, 3, 8


def make_steps(rows: int = B, length: int = T, **changes) -> DecodeStep:
    generator = torch.Generator().manual_seed(0)
    whole = {
        "tokens": torch.randint(0, 50, (rows, length), generator=generator),
        "role": torch.zeros(rows, length, dtype=torch.int64),
        "explored": torch.rand(rows, length, generator=generator) < 0.5,
        "mix_ids": torch.randint(0, 50, (rows, length, K), generator=generator),
        "mix_weights": torch.rand(rows, length, K, generator=generator),
        "scale": torch.rand(rows, length, generator=generator),
        "offset": torch.rand(rows, length, D, generator=generator),
    }
    return DecodeStep(**{**whole, **changes})


def make_rollouts(**changes) -> Rollouts:
    lengths, prompts = torch.tensor([6, 2, 4, 1]), torch.tensor([3, 3, 5, 5])
    mask = torch.arange(T)[None] < lengths[:, None]
    whole = {
        "prompts": torch.arange(B * S).view(B, S),
        "prompt_mask": torch.arange(S)[None] >= S - prompts[:, None],
        "steps": make_steps(),
        "mask": mask,
        "log_probs": -torch.rand(B, T) * mask,
        "entropy": torch.rand(B, T) * mask,
        "keys": torch.arange(B) + 100,
        "group_size": 2,
    }
    return Rollouts(**{**whole, **changes})


BAD = {
    "prompt_mask": {"prompt_mask": torch.ones(B, S + 1, dtype=torch.bool)},
    "prompt_mask ": {"prompt_mask": torch.arange(S)[None] < torch.tensor([3, 3, 5, 5])[:, None]},
    "mask": {"mask": torch.ones(B + 1, T, dtype=torch.bool)},
    "mask ": {
        "mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    },
    "log_probs": {"log_probs": torch.zeros(B, T - 1)},
    "log_probs ": {"log_probs": torch.full((B, T), float("nan"))},
    "log_probs  ": {"log_probs": torch.full((B, T), float("-inf"))},
    "entropy": {"entropy": torch.zeros(B + 2, T)},
    "entropy ": {"entropy": torch.full((B, T), float("nan"))},
    "keys": {"keys": torch.zeros(B, 1, dtype=torch.int64)},
    "group_size": {"group_size": 3},
    "steps.tokens": {"steps": make_steps(tokens=torch.zeros(B, T + 1, dtype=torch.int64))},
    "steps.role": {"steps": make_steps(role=torch.zeros(B + 1, T, dtype=torch.int64))},
    "steps.explored": {"steps": make_steps(explored=torch.zeros(B, T + 1, dtype=torch.bool))},
    "steps.mix_ids": {"steps": make_steps(mix_ids=torch.zeros(T, B, K, dtype=torch.int64))},
    "steps.mix_weights": {"steps": make_steps(mix_weights=torch.zeros(B, T - 1, K))},
    "steps.scores": {"steps": make_steps(scores=torch.zeros(B - 1, T, K))},
    "steps.scale": {"steps": make_steps(scale=torch.zeros(B - 1, T))},
    "steps.offset": {"steps": make_steps(offset=torch.zeros(B, T - 2, D))},
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_field_is_named(field):
    with pytest.raises(ValueError, match=rf"^Rollouts\.{field.strip()}: got .*, expected .*") as told:
        make_rollouts(**BAD[field])
    assert "\n" not in str(told.value)


def test_numbers_that_are_not_finite_are_called_so():
    with pytest.raises(ValueError, match="not finite"):
        make_rollouts(log_probs=torch.full((B, T), float("nan")))


def test_an_engine_need_not_tell_the_entropy():
    whole = make_rollouts(entropy=None)
    assert whole.entropy is None and whole.rows(torch.tensor([2])).entropy is None


def test_records_are_frozen():
    for record in (make_rollouts(), make_steps()):
        for field in fields(record):
            with pytest.raises(AttributeError):
                setattr(record, field.name, None)


def test_lengths_loss_mask_and_draws():
    role = torch.zeros(B, T, dtype=torch.int64)
    role[0, 2], role[1, 5] = FORCED, FORCED  # the second lies in the padding
    rollouts = make_rollouts(steps=make_steps(role=role))
    assert rollouts.lengths.tolist() == [6, 2, 4, 1]
    assert rollouts.loss_mask.sum(dim=1).tolist() == [5, 2, 4, 1] and not rollouts.loss_mask[0, 2]
    assert rollouts.draws.token.shape == (B, T)
    for row in range(B):
        assert torch.equal(rollouts.draws.token[row], Draws(rollouts.keys[row], torch.arange(T)).token)


def test_a_step_can_be_indexed_and_changed_field_by_field():
    steps = make_steps()
    part = steps[torch.tensor([2, 0]), torch.tensor([1, 4])]
    assert part.scores is None
    for f in fields(DecodeStep):
        if f.name != "scores":
            assert torch.equal(getattr(part, f.name), getattr(steps, f.name)[[2, 0], [1, 4]])
    offset = steps.map(lambda value: value * 0).offset
    assert offset is not None and torch.equal(offset, torch.zeros(B, T, D))


def columns(steps: DecodeStep) -> list[DecodeStep]:
    return [steps[:, time] for time in range(T)]


def stacked_steps(steps: list[DecodeStep]) -> DecodeStep:
    return combine(steps, lambda values: torch.stack(list(values), dim=1))


def test_stacking_the_columns_of_a_record_gives_the_record_back():
    steps = make_steps()
    again = stacked_steps(columns(steps))
    for f in fields(DecodeStep):
        if f.name != "scores":
            assert torch.equal(getattr(again, f.name), getattr(steps, f.name)), f.name
    assert again.scores is None


def test_an_absent_field_becomes_its_meaning_where_another_step_has_it():
    steps = make_steps()
    mixed, table = columns(steps), torch.randn(50, D)
    mixed[1] = DecodeStep(mixed[1].tokens, mixed[1].role, mixed[1].explored)
    stacked = stacked_steps(mixed)
    assert stacked.mix_ids is not None and stacked.mix_weights is not None and steps.mix_weights is not None
    assert stacked.offset is not None and stacked.scale is not None
    assert torch.equal(stacked.mix_ids[:, 1], steps.tokens[:, 1, None].expand(B, K))
    fed = (table[stacked.mix_ids] * stacked.mix_weights[..., None]).sum(dim=2)
    assert torch.equal(fed[:, 1], table[steps.tokens[:, 1]])
    assert not stacked.offset[:, 1].any() and not stacked.scale[:, 1].any()
    for time in (0, 2, 3, 4, 5):
        assert torch.equal(stacked.mix_weights[:, time], steps.mix_weights[:, time])


def test_a_field_that_no_step_has_stays_absent():
    bare = [DecodeStep(column.tokens, column.role, column.explored) for column in columns(make_steps())]
    stacked = stacked_steps(bare)
    assert {f.name for f in fields(DecodeStep) if getattr(stacked, f.name) is None} == {
        "mix_ids",
        "mix_weights",
        "scores",
        "scale",
        "offset",
    }


def test_parts_are_trimmed_to_their_own_longest_prompt_and_answer():
    whole = make_rollouts()
    part = whole.rows(torch.tensor([1, 0]))
    assert part.prompts.tolist() == [[7, 8, 9], [2, 3, 4]] and part.prompt_mask.all()
    assert part.mask.shape == (2, 6) and part.group_size == 1
    short = whole.rows(torch.tensor([3, 1]))
    assert short.mask.tolist() == [[True, False], [True, True]]
    assert short.prompts.shape == (2, 5) and short.prompt_mask.sum(dim=1).tolist() == [5, 3]
    for name in ("log_probs", "entropy"):
        assert torch.equal(getattr(short, name), getattr(whole, name)[[3, 1], :2])
    assert torch.equal(short.keys, whole.keys[[3, 1]])
    for f in fields(DecodeStep):
        if f.name != "scores":
            assert torch.equal(getattr(short.steps, f.name), getattr(whole.steps, f.name)[[3, 1], :2])
    assert torch.equal(short.draws.token, whole.draws.token[[3, 1], :2])


def test_all_rows_in_order_are_the_whole():
    whole = make_rollouts()
    again = replace(whole.rows(torch.arange(B)), group_size=2)
    assert again.steps.offset is not None and whole.steps.offset is not None
    assert torch.equal(again.prompts, whole.prompts) and torch.equal(again.steps.offset, whole.steps.offset)
