"""vLLM's second model runner, its default on GPUs: unmodified, with models whose state feeds and samples by a session."""

from typing import Any

import numpy as np
import torch
from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]
from vllm.v1.worker.gpu.model_states.default import DefaultModelState  # pyright: ignore[reportMissingImports]
from vllm.v1.worker.gpu.sample.sampler import Sampler  # pyright: ignore[reportMissingImports]

from ngrpo.rollout.engines.vllm.plugin import PREFIX
from ngrpo.rollout.engines.vllm.session import Session


class SessionState(DefaultModelState):
    """Fed vectors go through one buffer, `fed`, which captured graphs read; `rows` has the session's row of each slot."""

    supports_prompt_embeds = False
    session: Session | None = None

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device):
        super().__init__(vllm_config, model, encoder_cache, device)
        self.fed = torch.zeros(self.max_num_tokens, self.inputs_embeds_size, dtype=self.dtype, device=device)
        self.rows = np.zeros(self.max_num_reqs, dtype=np.int64)

    def host(self, session: Session | None) -> None:
        """From now on the session feeds and samples all rows; None: vLLM does so again."""
        self.session = session

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self.rows[req_index] = (new_req_data.sampling_params.extra_args or {}).get("row", 0)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs, count = super().prepare_inputs(input_batch, req_states), input_batch.num_tokens
        ids = input_batch.input_ids[:count]
        if self.session is None:
            fed = self.model.embed_input_ids(ids)
        else:
            rows, computed = self.rows[input_batch.idx_mapping_np], input_batch.num_computed_tokens_np
            fed = self.session.feed(ids, rows, computed, input_batch.num_scheduled_tokens)
        self.fed[:count].copy_(fed)
        return {**inputs, "inputs_embeds": self.fed[: input_batch.num_tokens_after_padding]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "inputs_embeds": self.fed[:num_tokens]}

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        return SessionSampler(sampler, self), None


class SessionSampler(Sampler):
    """vLLM's sampler, which returns what the state's session samples, where there is one."""

    def __init__(self, stock: Any, state: SessionState):
        self.__dict__.update(stock.__dict__)  # its own constructor would allocate the buffers a second time
        self.state = state
        # Token counts, for penalties that no row has: a row's placeholder is an id beyond their end.
        self.penalties_state.output_bin_counts = None

    def sample(self, logits: torch.Tensor, *others: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.state.session is None:
            return super().sample(logits, *others, **options)
        return self.state.session.sample(logits), logits


class WithSession:
    """A model whose runner keeps a SessionState."""

    @staticmethod
    def get_model_state_cls() -> type[SessionState]:
        return SessionState


def __getattr__(name: str) -> type:
    """vLLM's own class of an architecture with a SessionState, by the name that the plug-in registers."""
    if not name.startswith(PREFIX):
        raise AttributeError(name)
    own = ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls()
    globals()[name] = type(name, (WithSession, own), {"__module__": __name__})
    return globals()[name]
