"""What each token of a tokenizer adds to a text, as bytes: decoding said once, for grading and for strategies alike.

Decoding whole answers would do more than put pieces together: it may take out the space before a full stop, or every
special token, a delimiter among them.
"""

import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ngrpo.rollout.texts import Pieces
from ngrpo.targets import SettingsError

WORD_BEGINS = "\u2581"  # what SentencePiece writes for a space
PROBE = "So 3.5 , it is x.</think>\n\n\\boxed{12} caf\u00e9 \u03c0"
FROM_CHARACTERS = {character: byte for byte, character in bytes_to_unicode().items()}


def pieces(tokenizer: PreTrainedTokenizerBase, dropped: Collection[int]) -> Pieces:
    """The pieces of every id; `dropped` ids, padding and stops, add nothing.

    Raises ValueError where a probe's pieces do not make the text that the tokenizer itself decodes.
    """
    kinds, added = set(_decoders(tokenizer)), tokenizer.added_tokens_decoder
    read = _reading(tokenizer, kinds)
    apart = b" " if kinds & {" ", "WordPiece"} else b""  # words stand apart from added tokens too
    every = [
        b"" if token is None else apart + added[number].content.encode() if number in added else read(token)
        for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    ]
    ids = tokenizer.encode(PROBE, add_special_tokens=False)
    theirs = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for leading in (b"", b" "):
        if Pieces(tuple(every), leading).text(ids) == theirs:
            return Pieces(tuple(b"" if token in dropped else one for token, one in enumerate(every)), leading)
    ours = Pieces(tuple(every)).text(ids)
    raise SettingsError(f"model.path: the tokenizer decodes {theirs!r}, its tokens make {ours!r}; choose another model")


def _decoders(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The kinds of the steps in which a tokenizer decodes; " " where there are none, as words then stand apart."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    decoder = json.loads(backend.to_str())["decoder"]
    for step in [decoder, *(decoder or {}).get("decoders", ())]:
        yield step["type"] if step else " "


def _reading(tokenizer: PreTrainedTokenizerBase, kinds: set[str]) -> Callable[[Any], bytes]:
    """What a token that is not an added one adds to a text."""
    if "ByteLevel" in kinds:
        return _byte_level
    if " " in kinds:
        return _word
    if "WordPiece" in kinds:
        return lambda token: token[2:].encode() if token.startswith("##") else _word(token)
    return _sentence_piece if kinds & {"Metaspace", "ByteFallback"} else partial(_decoded, tokenizer)


def _byte_level(token: str) -> bytes:
    return bytes(FROM_CHARACTERS[character] for character in token)


def _word(token: str) -> bytes:
    return b" " + token.encode()


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(WORD_BEGINS, " ").encode()


def _decoded(tokenizer: PreTrainedTokenizerBase, token: str | bytes) -> bytes:
    """Of a tokenizer of another kind."""
    return token if isinstance(token, bytes) else str(tokenizer.convert_tokens_to_string([token])).encode()
