"""The policy's weights inside vLLM's model, handed over in this process: no file, one whole tensor at a time."""

from typing import Any

import torch
from torch import Tensor

from ngrpo.models.causal import CausalModel


@torch.no_grad()
def hand_over(worker: Any, model: CausalModel) -> None:
    """Inside vLLM: from now on it computes with these weights."""
    inner = worker.worker
    tied = model.head is model.table
    inner.reload_weights(weights_iterator=model.weights())
    theirs = inner.model_runner.get_model()
    if tied:  # a reload makes anew what the table's own layer holds, and the head has packed its copy of the one before
        theirs.lm_head.weight = theirs.model.embed_tokens.weight
        theirs.lm_head.quant_method.process_weights_after_loading(theirs.lm_head)


def table(worker: Any) -> Tensor:
    """Inside vLLM: the input-embedding table (V, D), without the rows that pad it."""
    runner = worker.worker.model_runner
    return runner.get_model().model.embed_tokens.weight.detach()[: runner.model_config.get_vocab_size()]
