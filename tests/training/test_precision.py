"""Small updates reach the weights: what learns is kept in float32, whatever it computes in."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ngrpo.cli.command import examine
from ngrpo.models.causal import CausalModel
from ngrpo.models.files import BUNDLED

UPDATES, RATE = 100, 1e-6
SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def moved(precision: str, dtype: torch.dtype = torch.float32) -> tuple[float, torch.Tensor]:
    """(share of weights that the updates moved, how far each went) of AdamW on the loss of fixed ids."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval().to(dtype)
    causal = CausalModel(model, precision)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().double().clone()
    ids = torch.arange(96).view(2, 48)
    positions = torch.arange(48).expand(2, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        with causal.autocast():
            logits = causal.logits(causal.hidden(nn.functional.embedding(ids, causal.table), positions))
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    change = nn.utils.parameters_to_vector(model.parameters()).detach().double() - before
    return float((change != 0).double().mean()), change


def test_computing_in_bfloat16_moves_the_weights_as_far_as_float32_does():
    share, whole = moved("float32")
    mixed_share, mixed = moved("bfloat16")
    assert share >= 0.99 and mixed_share >= 0.99
    far = (mixed.abs() / whole.abs().clamp(min=1e-12))[whole != 0]
    assert float(((far > 0.5) & (far < 2)).double().mean()) > 0.9 and float(far.median()) == pytest.approx(1, rel=0.02)


def test_weights_in_bfloat16_would_stay_where_they_are():
    share, _ = moved("float32", torch.bfloat16)
    assert share < 0.6  # those near 0, where bfloat16 is fine


def test_they_are_refused_where_they_are_trained_and_fine_where_they_are_not():
    given = ["model=hf", f"model.path={BUNDLED['ngrpo:tiny']}", "model.dtype=bfloat16"]
    (line,) = examine("config", given).problems
    assert "swallow" in line and "model.dtype=float32 trainer.precision=bfloat16" in line
    assert examine("config", [*given, "model.lora.r=4"]).problems == []
    assert examine("evaluate", given).problems == []
