"""The models that are measured: the bundled one, and randomly initialized Qwen2 of any size, equal for equal seeds.

Random weights cost what trained ones cost; what they cannot do is end a text, so whoever uses them says where rows end.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from ngrpo.models import files
from ngrpo.models.loading import load_tokenizer

BUNDLED = files.BUNDLED["ngrpo:tiny"]
# layers, width, query heads, key heads, feed-forward width, vocabulary
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "nano": (2, 64, 4, 2, 128, 320),
    "5m": (4, 256, 4, 2, 704, 8_192),
    "20m": (6, 384, 6, 2, 1_536, 16_000),
    "50m": (9, 512, 8, 2, 2_048, 32_000),  # 51 million parameters, 16 million of them in the (tied) table
    "170m": (12, 1_024, 16, 4, 2_816, 32_000),
    "1.5b": (28, 1_536, 12, 2, 8_960, 151_936),  # the backbone of DeepSeek-R1-Distill-Qwen-1.5B, tied to save memory
}
NAMES = ("tiny", *SHAPES)
POSITIONS = 32_768


def is_random(name: str) -> bool:
    """Whether a model never ends a text by itself."""
    return name != "tiny"


def settings(name: str, vocabulary: int | None = None) -> Qwen2Config:
    """The configuration of a random model, with another vocabulary if one is given."""
    layers, width, heads, key_heads, inner, words = SHAPES[name]
    return Qwen2Config(
        vocab_size=vocabulary or words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def stock(
    name: str,
    attention: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    vocabulary: int | None = None,
) -> Qwen2ForCausalLM:
    """The transformers model, in eval mode; random ones are built in memory, on the device."""
    if not is_random(name):
        model = Qwen2ForCausalLM.from_pretrained(BUNDLED, dtype=dtype, attn_implementation=attention)
        return model.eval().to(torch.device(device))  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(settings(name, vocabulary), dtype=dtype, attn_implementation=attention)
    return model.eval()


def write_tokenizer(words: int, folder: Path) -> None:
    """The bundled tokenizer with so many words: those that it lacks are w165, w166, ..., which stand in no prompt.

    Prompts so have the same tokens under every model, and every id that a random model draws is a word.
    """
    content = json.loads((BUNDLED / "tokenizer.json").read_text("utf-8"))
    known = content["model"]["vocab"]
    known |= {token["content"]: token["id"] for token in content["added_tokens"]}  # else they move behind the new words
    known |= {f"w{number}": number for number in set(range(words)) - set(known.values())}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((BUNDLED / "tokenizer_config.json").read_bytes())


def tokenizer(name: str, vocabulary: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model."""
    if not is_random(name):
        return load_tokenizer(str(BUNDLED))
    with TemporaryDirectory() as folder:
        write_tokenizer(vocabulary or SHAPES[name][-1], Path(folder))
        return load_tokenizer(folder)


@contextmanager
def directory(name: str) -> Iterator[str]:
    """A directory that the model can be loaded from, while the context lasts."""
    if not is_random(name):
        yield str(BUNDLED)
        return
    with TemporaryDirectory() as folder:
        stock(name, "sdpa").save_pretrained(folder)
        write_tokenizer(SHAPES[name][-1], Path(folder))
        yield folder
