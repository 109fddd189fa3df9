"""The bytes that each token of a tokenizer adds to a text: one rule of decoding for grading and for strategies.

The tokenizer's own decoding of whole answers may do more than concatenate: remove the space before a full stop, or every
special token, a delimiter among them.
"""

import json
import re
from collections.abc import Collection

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ngrpo.rollout.texts import Pieces
from ngrpo.targets import SettingsError

WORD_BEGINS = "\u2581"  # SentencePiece's character for a space
PROBE = "So 3.5 , it is x.</think>\n\n\\boxed{12} caf\u00e9 \u03c0"
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's token for a byte that no piece has
FROM_CHARACTERS = {character: byte for byte, character in bytes_to_unicode().items()}


def pieces(tokenizer: PreTrainedTokenizerBase, dropped: Collection[int]) -> Pieces:
    """The pieces of all ids; `dropped` ids, padding and stops, add nothing.

    Raises ValueError where the pieces of a probe do not make the text that the tokenizer decodes.
    """
    kinds, added = _decoders(tokenizer), tokenizer.added_tokens_decoder
    separator = b" " if kinds & {" ", "WordPiece"} else b""  # also between words and added tokens
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    every = [
        separator + added[number].content.encode() if number in added else _piece(tokenizer, kinds, token)
        for number, token in enumerate(tokens)
    ]
    ids = tokenizer.encode(PROBE, add_special_tokens=False)
    theirs = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for leading in (b"", b" "):
        if Pieces(tuple(every), leading).text(ids) == theirs:
            return Pieces(tuple(b"" if token in dropped else one for token, one in enumerate(every)), leading)
    ours = Pieces(tuple(every)).text(ids)
    raise SettingsError(f"model.path: the tokenizer decodes {theirs!r}, its tokens make {ours!r}; choose another model")


def _decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The types of a tokenizer's decoders; " " where it has none, as words are then separated by spaces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return set()
    decoder = json.loads(backend.to_str())["decoder"]
    return {step["type"] if step else " " for step in [decoder, *(decoder or {}).get("decoders", ())]}


def _piece(tokenizer: PreTrainedTokenizerBase, kinds: set[str], token: str | bytes | None) -> bytes:
    """What a token that is not an added token adds to a text; nothing where an id has no token."""
    if token is None or isinstance(token, bytes):
        return token or b""
    if "ByteLevel" in kinds:
        return bytes(FROM_CHARACTERS[character] for character in token)
    if "WordPiece" in kinds and token.startswith("##"):
        return token[2:].encode()
    if kinds & {" ", "WordPiece"}:
        return b" " + token.encode()
    if kinds & {"Metaspace", "ByteFallback"}:
        byte = BYTE.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(WORD_BEGINS, " ").encode()
    return str(tokenizer.convert_tokens_to_string([token])).encode()
