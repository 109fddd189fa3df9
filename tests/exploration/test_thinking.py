"""Where thinking ends in real tokenizers, for every strategy that acts while a row thinks."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from real_tokenizers import CONTEXTS, DELIMITERS, NAMES, end_of, ids_of, real

from ngrpo.exploration.thinking import Thinking
from ngrpo.models.loading import vocabulary
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import Vocabulary
from ngrpo.rollout.texts import Pieces, transitions

FORMS = list(DELIMITERS)
FILLERS = 48  # further tokens of a small vocabulary, so that filters and neighbors have something to choose from
WIDTH = 8


@cache
def words_of(name: str, form: str) -> Vocabulary:
    model = SimpleNamespace(model=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None)))
    return vocabulary(real(name, form), model, DELIMITERS[form], "")  # pyright: ignore[reportArgumentType]


@cache
def small(name: str, form: str) -> tuple[Vocabulary, list[list[int]], list[int]]:
    """The contexts in a vocabulary of their own tokens and some more, and the places where the delimiter ends in them."""
    tokenizer, delimiter = real(name, form), DELIMITERS[form]
    words, texts = words_of(name, form), ids_of(tokenizer, delimiter)
    used = dict.fromkeys([*words.stops, *words.answer_start, *(token for ids in texts for token in ids)])
    kept = [*used, *[token for token in range(1000, 1000 + FILLERS) if token not in used]]
    new = {token: number for number, token in enumerate(kept)}
    assert words.pieces is not None
    less = Vocabulary(
        size=len(kept),
        reserved=tuple(new[token] for token in words.reserved if token in new),
        stops=tuple(new[token] for token in words.stops),
        answer_start=tuple(new[token] for token in words.answer_start),
        pieces=Pieces(tuple(words.pieces.of[token] for token in kept)),
        delimiter=delimiter,
    )
    ends = [end_of(tokenizer, ids, delimiter) for ids in texts]
    return less, [[new[token] for token in ids] for ids in texts], ends


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_thinking_ends_with_the_token_in_which_the_text_has_the_delimiter(name, form):
    """Over the whole vocabulary, against decoding ever more of the text."""
    tokenizer, delimiter = real(name, form), DELIMITERS[form]
    thinking, merged = Thinking(words_of(name, form), len(tokenizer)), 0
    for ids in ids_of(tokenizer, delimiter):
        state, seen = thinking.start(1, torch.device("cpu")), []
        for token in ids:
            _, state = thinking.push(state, torch.tensor([token]))
            seen.append(bool(thinking.active(state)))
        end = end_of(tokenizer, ids, delimiter)
        assert seen == [place < end for place in range(len(ids))], tokenizer.convert_ids_to_tokens(ids)
        merged += tokenizer.decode([ids[end]]) not in (delimiter, delimiter[-1])
    assert len(CONTEXTS) >= 6
    assert merged or form == "special" or name != "llama", "else ids alone would do"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_explored_from_the_end_of_the_delimiter_on(name, form, strategy_name, make_strategy):
    words, texts, ends = small(name, form)
    table = torch.randn(words.size, WIDTH, generator=torch.Generator().manual_seed(0))
    strategy = make_strategy(strategy_name, SimpleNamespace(table=table, head=table), words, rate=1.0)
    state, acted = strategy.start(len(texts), torch.device("cpu")), []
    if "read" not in state:
        pytest.skip("explores in the answer too")
    length, noise = (
        max(map(len, texts)),
        torch.randn(len(texts), words.size, generator=torch.Generator().manual_seed(1)),
    )
    told = torch.tensor([ids + [words.size - 1] * (length - len(ids)) for ids in texts])
    for place in range(length):
        logits = noise.scatter_add(1, told[:, place, None], torch.full((len(texts), 1), 90.0))
        draws = Draws(torch.arange(len(texts)), torch.full((len(texts),), place))
        step, state = strategy.sample(logits, state, draws, table)
        assert torch.equal(step.tokens, told[:, place])
        plain = (strategy.embed(step, table, draws) == table[step.tokens]).all(dim=1)
        for row, end in enumerate(ends):
            assert place < end or plain[row] or (strategy_name, place) == ("stht", end), CONTEXTS[row]
            assert place <= end or not step.explored[row], CONTEXTS[row]
        acted.append(step.explored)
    assert torch.stack(acted).any(), "and before it there is exploration"


def test_patterns_are_found_wherever_tokens_cut_them():
    """Against looking for them in the text, for every way to cut it into tokens of one to three bytes."""
    letters = [bytes([byte]) for byte in b"ab<"]
    pieces = tuple(
        one + two + three for one in letters for two in (b"", *letters) for three in ([b""] + letters * bool(two))
    )
    patterns = (b"ab", b"<a<", b"aab<")
    table = transitions(pieces, tuple(map(tuple, patterns)), len(pieces) + 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        ids, state, text = torch.randint(len(pieces), (7,), generator=generator).tolist(), 0, b""
        for token in ids:
            text += pieces[token]
            state = table[state, token]
            assert (state == len(table) - 1) == any(pattern in text for pattern in patterns)
            assert table[state, len(pieces)] == state, "a row of padding adds nothing"
