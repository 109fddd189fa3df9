"""Decoding equals a full forward pass and the peer's `generate`, however rows are put together."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines import transformers as engine
from ngrpo.rollout.engines.transformers import decode_step, entropy, generate, prefill
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import Rollouts, Vocabulary
from ngrpo.training.replay import PackedBatch

SETTINGS = [(family, tied) for family in ("qwen2", "qwen3", "llama") for tied in (False, True)]


@pytest.fixture(scope="module")
def exact(make_model):
    return make_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def vocabulary(make_vocabulary):
    return make_vocabulary()


def prompt_texts(rollouts: Rollouts) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollouts.prompts, rollouts.prompt_mask, strict=True)]


def peer(make_model, family: str = "qwen2", **given) -> Any:
    """The same weights with the attention and the masks of transformers."""
    model = make_model(family, **given).model
    model.set_attn_implementation("sdpa")
    return model


def peer_logits(model: PreTrainedModel, text: list[int]) -> torch.Tensor:
    """(L, V) float64 logits of one text without padding, by the model itself."""
    return model(input_ids=torch.tensor([text])).logits[0].detach()


@pytest.mark.parametrize(("family", "tied"), SETTINGS)
def test_decoding_is_a_full_forward_pass(make_model, make_vocabulary, ready, make_rollouts, family, tied):
    model, vocabulary = make_model(family, tied=tied), make_vocabulary(family, tied=tied)
    rollouts = make_rollouts(model, ready(TokenSampling(), model, vocabulary), prompts=6, group=2, new_tokens=40)
    oracle = peer(make_model, family, tied=tied, dtype=torch.float64)
    assert rollouts.lengths.max() > 7 and rollouts.prompt_mask.sum(dim=1).unique().numel() == 6
    for row, (prompt, text) in enumerate(zip(prompt_texts(rollouts), rollouts.answer_ids(), strict=True)):
        log_p = peer_logits(oracle, prompt + text)[len(prompt) - 1 : -1].log_softmax(-1)
        expected = log_p.gather(1, torch.tensor(text)[:, None]).squeeze(1)
        made = rollouts.log_probs[row, : len(text)].double()
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
        entropies = rollouts.entropy[row, : len(text)].double()
        torch.testing.assert_close(entropies, -(log_p.exp() * log_p).sum(-1), rtol=0, atol=1e-5)
        assert not rollouts.log_probs[row, len(text) :].any() and not rollouts.entropy[row, len(text) :].any()


@pytest.mark.parametrize(("family", "tied"), SETTINGS)
def test_greedy_is_the_peer_s_generate(make_model, make_vocabulary, make_prompts, ready, family, tied):
    model, vocabulary = make_model(family, tied=tied), make_vocabulary(family, tied=tied)
    prompts, mask = make_prompts(6)
    ours = generate(model, ready(TokenSampling(1e-6), model, vocabulary), prompts, mask, torch.arange(6), 24)
    theirs = peer(make_model, family, tied=tied).generate(
        input_ids=prompts,
        attention_mask=mask.long(),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=list(vocabulary.stops),
        pad_token_id=0,
    )[:, prompts.shape[1] :]
    for text, row in zip(ours.answer_ids(), theirs.tolist(), strict=True):
        assert row[: len(text)] == text and not any(row[len(text) :])


def test_prefill_and_steps_give_the_logits_of_the_whole_text(exact, make_prompts):
    """Fed vectors need not be rows of the table."""
    prompts, mask = make_prompts(6)
    logits, cache = prefill(exact, prompts, mask, 40)
    fed = 0.5 * torch.randn(6, 40, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = [logits, *(decode_step(exact, fed[:, time], cache) for time in range(39))]
    for row in range(6):
        own = exact.table[prompts[row][mask[row]]]
        whole = exact.model(inputs_embeds=torch.cat((own, fed[row, :39]))[None]).logits[0, len(own) - 1 :]
        torch.testing.assert_close(torch.stack([step[row] for step in made]), whole, rtol=0, atol=1e-11)


def test_a_prompt_is_held_once_and_its_rows_see_it_and_their_own_answer(exact, make_model, make_prompts):
    """The cache against the stock model with a DynamicCache and masks, while rows and prompts leave."""
    prompts, mask = make_prompts(3)
    stock = peer(make_model, dtype=torch.float64)
    _, cache = prefill(exact, prompts, mask, 9)
    cache.fan_out(4)
    rows, fed = torch.arange(12), torch.randn(12, 9, 32, generator=torch.Generator().manual_seed(3)).double()
    # The first prompt's rows leave, the last ones fill their gaps; then some rows of each, then all but one.
    for time, keep in enumerate([None, [8, 9, 10, 11, 4, 5, 6, 7], None, [0, 7, 2, 6, 4], None, [0, 1, 3], [2], None]):
        if keep is not None:
            keep = torch.tensor(keep)
            cache.select(keep)
            rows = rows[keep]
        found = decode_step(exact, fed[rows, time], cache)
        for place, row in enumerate(rows.tolist()):
            own = exact.table[prompts[row // 4][mask[row // 4]]]
            whole = stock(inputs_embeds=torch.cat((own, fed[row, : time + 1]))[None]).logits[0, -1]
            torch.testing.assert_close(found[place], whole, rtol=0, atol=1e-11)
    assert len(cache.lengths) == 1, "prompts without rows have left"


@pytest.fixture(scope="module")
def batch(exact, vocabulary, ready, make_prompts, make_keys):
    """A strategy, prompts with mask, keys (P, G), and their texts when decoded all at once."""
    strategy = ready(TokenSampling(1.1), exact, vocabulary)
    prompts, mask = make_prompts(6)
    keys = make_keys(30).view(6, 5)
    whole = generate(exact, strategy, prompts, mask, keys.flatten(), 24)
    assert whole.lengths.min() < 24 and whole.lengths.max() == 24
    return strategy, prompts, mask, keys, np.array(whole.answer_ids(), dtype=object).reshape(6, 5)


def decode(model, batch, prompts, samples: slice | torch.Tensor = slice(None), limit: int = 24) -> np.ndarray:
    strategy, all_prompts, mask, keys, _ = batch
    made = generate(model, strategy, all_prompts[prompts], mask[prompts], keys[prompts][:, samples].flatten(), limit)
    return np.array([*made.answer_ids(), None], dtype=object)[:-1].reshape(len(made.prompts) // made.group_size, -1)


def test_other_batch_sizes_give_equal_tokens(exact, batch):
    for p in range(6):
        assert decode(exact, batch, slice(p, p + 1)).tolist() == batch[4][p : p + 1].tolist()
    alone = decode(exact, batch, slice(3, 4), slice(2, 3))
    assert alone.tolist() == [[batch[4][3, 2]]]


def test_other_row_orders_give_equal_tokens(exact, batch):
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert decode(exact, batch, order).tolist() == batch[4][order.numpy()].tolist()
    assert (
        decode(exact, batch, slice(None), torch.tensor([3, 1, 4, 0, 2])).tolist()
        == batch[4][:, [3, 1, 4, 0, 2]].tolist()
    )


def test_two_calls_give_equal_tokens(exact, batch):
    halves = np.concatenate([decode(exact, batch, part) for part in (slice(0, 2), slice(2, 6))])
    assert halves.tolist() == batch[4].tolist()
    parts = np.concatenate([decode(exact, batch, slice(None), part) for part in (slice(0, 3), slice(3, 5))], axis=1)
    assert parts.tolist() == batch[4].tolist()


@pytest.mark.parametrize("extra", [1, 30, 64])
def test_more_padding_gives_equal_tokens(exact, batch, extra):
    strategy, prompts, mask, keys, expected = batch
    wide, wide_mask = (torch.nn.functional.pad(value, (extra, 0)) for value in (prompts, mask))
    wide[~wide_mask] = 33  # whatever stands in the padding
    made = generate(exact, strategy, wide, wide_mask, keys.flatten(), 24)
    assert made.answer_ids() == expected.flatten().tolist()


def test_a_shorter_limit_gives_the_beginning_of_the_same_texts(exact, batch):
    assert decode(exact, batch, slice(None), limit=7).tolist() == [
        [text[:7] for text in row] for row in batch[4].tolist()
    ]


def test_draws_are_made_in_blocks_of_any_size(exact, batch, monkeypatch):
    for size in (1, 5, 24):
        monkeypatch.setattr(engine, "DRAW_BLOCK", size)
        assert decode(exact, batch, slice(None)).tolist() == batch[4].tolist()


def test_tokens_come_from_the_row_s_own_uniforms(exact, batch):
    """Text, step by step, from an independent float64 softmax and the inverse CDF."""
    _, prompts, mask, keys, expected = batch
    for p in (0, 5):
        prompt, text = prompts[p][mask[p]].tolist(), expected[p, 1]
        cdf = (peer_logits(exact.model, prompt + text)[len(prompt) - 1 : -1] / 1.1).softmax(-1).cumsum(-1)
        uniforms = Draws(keys[p, 1], torch.arange(len(text))).token
        assert [
            int(np.searchsorted(row, u, "right")) for row, u in zip(cdf.numpy(), uniforms.tolist(), strict=True)
        ] == text


class Watched(TokenSampling):
    """Keeps the cumulative probabilities of every row and step, by the row's uniform."""

    def __init__(self, temperature: float):
        super().__init__(temperature)
        self.seen: dict[float, torch.Tensor] = {}

    def sample(self, logits, state, draws, table):
        cdf = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        self.seen.update(zip(draws.token.tolist(), cdf, strict=True))
        return super().sample(logits, state, draws, table)


def test_in_float32_only_a_uniform_beside_a_cdf_edge_can_change_a_token(
    make_model, vocabulary, ready, make_prompts, make_keys
):
    model = make_model()
    prompts, mask = make_prompts(6)
    keys = make_keys(24, "float32").view(6, 4)
    together, apart = (ready(Watched(1.0), model, vocabulary) for _ in range(2))
    whole = generate(model, together, prompts, mask, keys.flatten(), 20).answer_ids()
    parts = [
        generate(model, apart, prompts[p : p + 1, cut:], mask[p : p + 1, cut:], keys[p, s : s + 1], 20).answer_ids()[0]
        for p in range(6)
        for cut in [int(mask[p].long().argmax())]  # no padding here, some there
        for s in range(4)
    ]
    compared = 0
    for row, (a, b) in enumerate(zip(whole, parts, strict=True)):
        for time, u in enumerate(Draws(keys.flatten()[row], torch.arange(20)).token.tolist()[: len(a)]):
            compared += 1
            assert (together.seen[u] - apart.seen[u]).abs().max() < 1e-5
            if a[time] != b[time]:
                assert (together.seen[u] - u).abs().min() < 1e-5
                break  # from here on the texts are not the same
    assert compared > 200


@pytest.mark.parametrize("below", [0.0, 0.75, 2.0])
def test_finished_rows_leave_without_changing_the_others(exact, batch, monkeypatch, below):
    widths = []

    def counting(model, fed, cache):
        widths.append(len(fed))
        return decode_step(model, fed, cache)

    monkeypatch.setattr(engine, "decode_step", counting)
    monkeypatch.setattr(engine, "COMPACT_BELOW", below)
    assert decode(exact, batch, slice(None)).tolist() == batch[4].tolist()
    unfinished = [sum(len(text) > time for row in batch[4] for text in row) for time in range(1, 24)]
    if below == 0:  # the batch stays whole until nobody is left
        assert set(widths) == {30}
    elif below == 2:
        assert widths == unfinished
    else:
        assert sorted(widths, reverse=True) == widths and widths[-1] < 30
        assert all(left <= width and left > 0.75 * width - 1e-9 for width, left in zip(widths, unfinished, strict=True))


def test_every_strategy_records_the_same_whatever_leaves_when(
    make_strategy, strategy_name, exact, vocabulary, make_rollouts, monkeypatch
):
    strategy = make_strategy(strategy_name, exact, vocabulary)
    monkeypatch.setattr(engine, "COMPACT_BELOW", 0.0)
    whole = make_rollouts(exact, strategy, prompts=6, new_tokens=20)
    monkeypatch.setattr(engine, "COMPACT_BELOW", 2.0)
    parts = make_rollouts(exact, strategy, prompts=6, new_tokens=20)
    assert torch.equal(whole.mask, parts.mask)
    assert torch.equal(whole.steps.tokens, parts.steps.tokens)
    assert torch.equal(whole.steps.role[whole.mask], parts.steps.role[whole.mask])
    assert torch.equal(whole.steps.explored, parts.steps.explored)
    torch.testing.assert_close(whole.log_probs, parts.log_probs, rtol=1e-9, atol=1e-9)
    fed = [strategy.embed(r.steps[r.mask], exact.table.detach(), r.draws[r.mask]) for r in (whole, parts)]
    torch.testing.assert_close(*fed, rtol=1e-9, atol=1e-9)


def test_the_record_is_what_was_fed(make_strategy, strategy_name, exact, vocabulary, make_rollouts, monkeypatch):
    """For every strategy `embed` rebuilds the vectors that the model read while it decoded."""
    read = []

    def keeping(model, fed, cache):
        read.append(fed)
        return decode_step(model, fed, cache)

    monkeypatch.setattr(engine, "decode_step", keeping)
    monkeypatch.setattr(engine, "COMPACT_BELOW", 0.0)
    strategy = make_strategy(strategy_name, exact, vocabulary)
    rollouts = make_rollouts(exact, strategy, prompts=6, new_tokens=20)
    with strategy.perturbed(exact):
        rebuilt = strategy.embed(rollouts.steps, exact.table.detach(), rollouts.draws)
    fed, consumed = torch.stack(read, dim=1), rollouts.mask[:, 1:]
    assert consumed.sum() > 100
    torch.testing.assert_close(rebuilt[:, :-1][consumed], fed[consumed], rtol=0, atol=1e-12)


def test_every_row_ends_with_a_stop_or_at_the_limit(
    make_strategy, strategy_name, make_model, make_vocabulary, make_rollouts
):
    ends = set()
    for seed in range(2):
        model, vocabulary = make_model(seed=seed), make_vocabulary(seed=seed)
        rollouts = make_rollouts(
            model, make_strategy(strategy_name, model, vocabulary), prompts=6, group=6, new_tokens=20
        )
        for text in rollouts.answer_ids():
            assert not set(text[:-1]) & set(vocabulary.stops)
            assert text[-1] in vocabulary.stops or len(text) == 20
            ends.add(text[-1] if text[-1] in vocabulary.stops else "limit")
    assert "limit" in ends and len(ends) > 1


def test_each_of_several_stops_ends_a_text(exact, vocabulary, make_rollouts, ready):
    assert len(vocabulary.stops) == 2
    both = make_rollouts(exact, ready(TokenSampling(), exact, vocabulary), group=16, new_tokens=24).answer_ids()
    assert {text[-1] for text in both if len(text) < 24} == set(vocabulary.stops)
    for stop in vocabulary.stops:
        only = Vocabulary(vocabulary.size, vocabulary.reserved, (stop,))
        alone = make_rollouts(exact, ready(TokenSampling(), exact, only), group=16, new_tokens=24).answer_ids()
        for text, longer in zip(both, alone, strict=True):
            assert longer[: len(text)] == text, "the same uniforms, the same text"
            assert len(longer) == len(text) or text[-1] != stop


def test_the_prompt_is_read_once_for_its_whole_group(exact, batch, monkeypatch):
    shapes, hidden = [], CausalModel.hidden

    def counting(self, embeddings, *others):
        shapes.append(tuple(embeddings.shape[:2]))
        return hidden(self, embeddings, *others)

    monkeypatch.setattr(CausalModel, "hidden", counting)
    assert decode(exact, batch, slice(None)).tolist() == batch[4].tolist()
    assert shapes[0] == (1, 6 * 7), "P prompts, not B rows"
    assert len(shapes) == 24 and all(length == 1 for _, length in shapes[1:]), "the last token is never read"


@pytest.mark.parametrize(("length", "read"), [(31, 6 * (31 + 7)), (32, 32 + 6 * 7)])
def test_what_all_prompts_begin_with_is_read_once_where_it_is_long(
    exact, vocabulary, ready, make_rollouts, monkeypatch, length, read
):
    """Shorter beginnings, such as what a chat template writes before a message, leave every number as it was."""
    widths, hidden = [], CausalModel.hidden

    def counting(self, embeddings, *others):
        widths.append(embeddings.shape[1])
        return hidden(self, embeddings, *others)

    monkeypatch.setattr(CausalModel, "hidden", counting)
    strategy = ready(TokenSampling(), exact, vocabulary)
    rollouts = make_rollouts(exact, strategy, prompts=6, group=2, prefix=[7] * length)
    assert widths[0] == read
    saved = (6 - 1) * length if length == 32 else 0
    assert len(PackedBatch.of(rollouts).prompt_ids) == rollouts.prompt_mask[::2].sum() - saved


@pytest.mark.parametrize("limit", [1, 2])
def test_the_shortest_answers(make_strategy, strategy_name, exact, vocabulary, make_rollouts, limit):
    strategy = make_strategy(strategy_name, exact, vocabulary)
    rollouts = make_rollouts(exact, strategy, new_tokens=limit)
    assert rollouts.mask.shape == (16, limit) and rollouts.mask[:, 0].all()
    longer = make_rollouts(exact, strategy, new_tokens=5)
    assert torch.equal(rollouts.steps.tokens, longer.steps.tokens[:, :limit])


def test_all_rows_may_finish_at_once(exact, vocabulary, make_rollouts, ready):
    every = Vocabulary(vocabulary.size, (), tuple(range(64)))
    rollouts = make_rollouts(exact, ready(TokenSampling(), exact, every))
    assert rollouts.mask.shape == (16, 1) and rollouts.mask.all()


def test_weights_that_are_not_finite_are_told(make_strategy, strategy_name, make_model, vocabulary, make_rollouts):
    model = make_model()
    strategy = make_strategy(strategy_name, model, vocabulary)
    with torch.no_grad():
        model.model.model.layers[1].mlp.down_proj.weight[3, 3] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        make_rollouts(model, strategy)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_logits_that_are_not_finite_are_told_with_a_filter_too(make_model, vocabulary, make_rollouts, ready, top_p):
    model = make_model()
    strategy = ready(TokenSampling(0.7, top_p), model, vocabulary)
    with torch.no_grad():
        model.model.lm_head.weight[5] = math.inf
    with pytest.raises(ValueError, match="not finite"):
        make_rollouts(model, strategy)


def test_entropy_is_in_nats_and_survives_certainty():
    logits = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).double() * 3
    peer = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), peer, rtol=1e-12, atol=0)
    assert entropy(torch.zeros(1, 64)).item() == pytest.approx(math.log(64))
    certain = torch.full((1, 64), -torch.inf)
    certain[0, 3] = 0.0
    assert entropy(certain).item() == 0.0


def test_rows_keep_their_prompts_and_keys(exact, batch):
    strategy, prompts, mask, keys, _ = batch
    made = generate(exact, strategy, prompts, mask, keys.flatten(), 4)
    assert made.group_size == 5 and torch.equal(made.keys, keys.flatten())
    assert torch.equal(made.prompts, prompts.repeat_interleave(5, 0)) and torch.equal(
        made.prompt_mask, mask.repeat_interleave(5, 0)
    )
