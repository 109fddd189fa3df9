"""The policy's weights in vLLM's model: loaded within this process, without a file, one whole tensor at a time."""

from typing import Any

import torch
from torch import Tensor

from ngrpo.models.causal import CausalModel


@torch.no_grad()
def load(worker: Any, model: CausalModel) -> None:
    """Inside vLLM: replaces its weights by those of `model`."""
    inner = worker.worker
    tied = model.head is model.model.get_input_embeddings().weight
    inner.reload_weights(weights_iterator=model.weights())
    theirs = inner.model_runner.get_model()
    if tied and hasattr(theirs, "lm_head") and theirs.lm_head is not theirs.model.embed_tokens:
        # A reload replaces the table, and the head still has its packed copy of the old one.
        theirs.lm_head.weight = theirs.model.embed_tokens.weight
        theirs.lm_head.quant_method.process_weights_after_loading(theirs.lm_head)


@torch.no_grad()
def table(worker: Any) -> Tensor:
    """Inside vLLM: the vectors fed for each token (V, D), without the rows that pad the input embedding."""
    runner = worker.worker.model_runner
    theirs, count = runner.get_model(), runner.model_config.get_vocab_size()
    rows = theirs.model.embed_tokens.weight.detach()[:count]
    ids = torch.arange(count, device=rows.device)
    scaled = not torch.equal(theirs.embed_input_ids(ids[:64]), rows[:64])
    return theirs.embed_input_ids(ids) if scaled else rows
