"""vLLM's first model runner, the one for CPUs: a session decides what it feeds and samples.

Two things are overridden: `_model_forward`, which vLLM documents as an extension point, and the sampler.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from vllm.v1.outputs import SamplerOutput  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.sampler import Sampler  # pyright: ignore[reportMissingImports]
from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # pyright: ignore[reportMissingImports]
from vllm.v1.worker.cpu_worker import CPUWorker  # pyright: ignore[reportMissingImports]

from ngrpo.rollout.engines.vllm.session import Session


class SessionSampler(Sampler):
    """Returns what the session samples."""

    session: Session | None = None

    def forward(self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **options: Any) -> SamplerOutput:
        if self.session is None:
            return super().forward(logits, sampling_metadata, *args, **options)
        return SamplerOutput(sampled_token_ids=self.session.sample(logits)[:, None].int(), logprobs_tensors=None)


class Runner(CPUModelRunner):
    """The CPU's runner, which feeds what its sampler's session says, where there is one."""

    def __init__(self, vllm_config: Any, device: torch.device):
        super().__init__(vllm_config, device)
        self.sampler = SessionSampler(self.sampler.logprobs_mode, self.sampler.use_fp64_gumbel)

    def host(self, session: Session | None) -> None:
        """From now on the session feeds and samples all rows; None: vLLM does so again."""
        self.sampler.session = session

    def _model_forward(
        self, input_ids: Any = None, positions: Any = None, intermediate_tensors: Any = None, inputs_embeds: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        session = self.sampler.session
        if session is None:
            return super()._model_forward(input_ids, positions, intermediate_tensors, inputs_embeds, **options)
        batch = self.input_batch
        rows = np.array([self.requests[name].sampling_params.extra_args["row"] for name in batch.req_ids])
        starts = self.query_start_loc.np[: len(rows) + 1]
        computed = batch.num_computed_tokens_cpu[: len(rows)]
        fed = session.feed(input_ids[: starts[-1]], rows, computed, np.diff(starts))
        fed = F.pad(fed, (0, 0, 0, len(input_ids) - len(fed)))
        return super()._model_forward(None, positions, intermediate_tensors, fed, **options)


class Worker(CPUWorker):
    """The CPU's worker with this runner."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner = Runner(self.vllm_config, self.device)
