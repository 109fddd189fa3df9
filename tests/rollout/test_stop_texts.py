"""Texts that end a row: with the token in which they end, wherever tokens cut them, and whatever leaves the batch."""

from dataclasses import replace

import pytest
import torch
from strategies import neighbor_mix

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines import transformers as engine
from ngrpo.rollout.records import Vocabulary
from ngrpo.rollout.sampling import truncated
from ngrpo.rollout.texts import Pieces

SIZE = 60
LETTERS = tuple(bytes([97 + token % 5, 97 + token // 5 % 5]) for token in range(SIZE))  # two letters of five a token
STOPS = ("abb", "cde", "eea", "dd")


def stopping(vocabulary: Vocabulary, *stops: str) -> Vocabulary:
    return replace(vocabulary, stops=(0,), pieces=Pieces(LETTERS), delimiter="ca", stop_texts=stops)


@pytest.mark.parametrize("strategy", [TokenSampling(), neighbor_mix(0.5, 3)], ids=["tokens", "mix"])
@pytest.mark.parametrize("below", [0.0, 0.95])
def test_a_row_is_what_it_would_be_up_to_the_token_in_which_a_stop_ends(
    setting, ready, make_rollouts, monkeypatch, strategy, below
):
    monkeypatch.setattr(engine, "COMPACT_BELOW", below)
    model, vocabulary = setting
    whole = make_rollouts(model, ready(strategy, model, stopping(vocabulary)), new_tokens=24).answer_ids()
    words = stopping(vocabulary, *STOPS)
    made = make_rollouts(model, ready(strategy, model, words), new_tokens=24)
    ended = 0
    for row, full in zip(made.answer_ids(), whole, strict=True):
        said = [b"".join((*LETTERS, *[b""] * 4)[token] for token in full[: n + 1]).decode() for n in range(len(full))]
        end = next((n + 1 for n, text in enumerate(said) if any(stop in text for stop in STOPS)), len(full))
        assert row == full[:end]
        assert words.stopped(row) == (end < 24 or any(stop in said[-1] for stop in STOPS) or full[-1] == 0)
        graded = words.text(row)
        assert said[end - 1].startswith(graded) and not any(stop in graded for stop in STOPS)
        ended += end < len(full)
    assert ended > 8, "and not all in the same decode step"
    assert truncated(made, strategy).tolist() == [not words.stopped(row) for row in made.answer_ids()]


def test_a_text_is_cut_where_the_first_of_several_stops_ends():
    words = Vocabulary(
        SIZE, (0,), (0,), pieces=Pieces((b"", b"so ", b"12E", b"ND", b" or STOP")), stop_texts=("STOP", "END")
    )
    assert words.text([1, 2, 3, 4]) == "so 12" and words.stopped([1, 2, 3])
    assert words.text([1, 4]) == "so  or " and words.text([1, 2, 0]) == "so 12E" and not words.stopped([1, 2])
    with pytest.raises(ValueError, match="pieces"):
        replace(words, pieces=None).text([1])


def test_looking_for_a_stop_reads_nothing_back(setting, ready):
    model, vocabulary = setting
    meta = torch.device("meta")
    strategy = ready(TokenSampling(), model, stopping(vocabulary, *STOPS)).to(meta)
    rows = engine.Decoding(4, strategy, meta)
    logits, draws = torch.empty(4, SIZE, device=meta), engine.draws_from(torch.arange(4, device=meta), 0)
    step, log_prob, _ = strategy.sample_and_log_prob(logits, {}, draws[torch.arange(4, device=meta), 0], model.table)
    rows.record(step, log_prob, engine.entropy(logits))
    assert rows.finished.is_meta and rows.read["read"].is_meta
