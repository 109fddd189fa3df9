"""vLLM as an engine: unmodified, in this process, with the same strategies as the reference engine.

Every `sync` loads the policy's weights into it, and a session runs the strategy while rows are decoded.
"""

import copy
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models import architectures
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.vllm import installed, plugin, weights
from ngrpo.rollout.engines.vllm.session import FINISHED, Session
from ngrpo.rollout.records import Rollouts
from ngrpo.rundir.checkpoints import rng_state, set_rng_state
from ngrpo.targets import SettingsError

GIB = 2**30
BLOCK_SIZE = 32  # tokens in a block of the cache: the smallest that vLLM's attention takes on a CPU
# vLLM's arguments that may have one value only: a strategy runs in one engine per process, without speculation.
FIXED = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1, "speculative_config": None}
# One process, so that strategies and weights need not be serialized; no usage statistics are sent.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
}  # fmt: skip


class VllmEngine:
    """See engines.base.Engine. The model is loaded at the first `sync`.

    dtype          of weights and computation: "float32" or "bfloat16"
    kv_cache_gib   memory for keys and values, GiB; where it runs short, rows are preempted and recomputed
    rows           decoded at a time, at most
    options        other arguments of vllm.LLM; None leaves vLLM's default
    """

    llm: Any = None

    def __init__(
        self,
        dtype: str = "float32",
        kv_cache_gib: float = 1.0,
        rows: int = 256,
        options: Mapping[str, Any] | None = None,
    ):
        self.dtype, self.kv_cache_gib, self.rows = dtype, kv_cache_gib, rows
        self.options = {name: value for name, value in (options or {}).items() if value is not None}
        self.salts, self.asleep = itertools.count(), False
        if lines := list(self._refusals()):
            raise SettingsError(lines)

    def _refusals(self) -> Iterator[str]:
        """Why it cannot run here with these settings, a line for each reason."""
        if refusal := installed.refusal():
            yield refusal
        if (tokens := self.options.get("max_num_batched_tokens", self.rows)) < self.rows:
            rule = f"a pass takes a token of each of engine.rows={self.rows} rows"
            yield f"engine.options.max_num_batched_tokens={tokens}: {rule}; engine.rows={tokens}"
        for name in (name for name, only in FIXED.items() if self.options.get(name, only) != only):
            rule = "one engine per process, without speculation, is what strategies are hosted by"
            yield f"engine.options.{name}={self.options[name]}: {rule}; leave it out"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        if self.kv_cache_gib >= memory and not torch.cuda.is_available():
            rule = f"this machine has {memory:.1f} GiB"
            yield f"engine.kv_cache_gib={self.kv_cache_gib:g}: {rule}; engine.kv_cache_gib=1"

    def refuses(self, strategy: Exploration, model: str) -> str | None:
        if strategy.acts_on:
            rule = f"acts on the {strategy.acts_on} of the policy itself, and vLLM computes with a copy"
            return f"engine=vllm: {type(strategy).__name__} {rule}; engine=transformers"
        refusal = installed.unsupported(model)
        return refusal and f"model.path={model}: {refusal}; choose another model"

    def sync(self, model: CausalModel, step: int, *strategies: Exploration) -> Mapping[str, float]:
        with model.gathered():
            prepared = [s.prepare(model.table.detach(), step, model.head.detach()) for s in strategies]
        if self.llm is None:
            self.llm = self._start(model)
        if self.asleep:
            self.llm.wake_up()
        self.llm.collective_rpc(weights.load, args=(model,))
        self.asleep = False
        self.llm.reset_prefix_cache()  # it holds keys and values of the old weights
        return {name: value for figures in prepared for name, value in figures.items()}

    def generate(self, strategy: Exploration, prompts: Tensor, mask: Tensor, keys: Tensor, limit: int) -> Rollouts:
        if self.llm is None or self.asleep:
            raise RuntimeError("the engine has no weights yet: sync comes before generate")
        group = len(keys) // len(prompts)
        self._refuse_long(int(mask.sum(dim=1).max()), limit)
        texts = [row[there].tolist() for row, there in zip(prompts, mask, strict=True)]
        (table,) = self.llm.collective_rpc(weights.table)
        starts = mask.sum(dim=1).repeat_interleave(group).cpu().numpy()
        session = Session(strategy, table, keys, starts, limit)
        salt = str(next(self.salts))  # so that cached prompts are shared within a rollout only
        requests = [{"prompt_token_ids": texts[row // group], "cache_salt": salt} for row in range(len(keys))]
        settings = [
            import_module("vllm").SamplingParams(
                temperature=0, max_tokens=limit, ignore_eos=True, stop_token_ids=[FINISHED], detokenize=False,
                extra_args={"row": row},
            )
            for row in range(len(keys))
        ]  # fmt: skip
        self.llm.collective_rpc(host, args=(session,))
        try:
            self.llm.generate(requests, settings, use_tqdm=False)
        finally:
            self.llm.collective_rpc(host, args=(None,))
        fan = torch.arange(len(prompts), device=prompts.device).repeat_interleave(group)
        return session.rollouts(prompts[fan].to(table.device), mask[fan].to(table.device), group)

    def sleep(self) -> None:
        """Frees weights, keys and values; a CPU keeps them, as vLLM has no sleep mode there."""
        if self.llm is not None and self.options.get("enable_sleep_mode"):
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self) -> None:
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None

    def _start(self, model: CausalModel) -> Any:
        """vLLM with a model of this shape, whose weights are loaded later. Raises SettingsError where it does not start."""
        cuda = model.table.device.type == "cuda"
        for variable, value in {**ENVIRONMENT, "VLLM_USE_V2_MODEL_RUNNER": str(int(cuda))}.items():
            os.environ.setdefault(variable, value)
        v1 = os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        settings: dict[str, Any] = {
            "load_format": "dummy", "skip_tokenizer_init": True, "dtype": self.dtype, "max_num_seqs": self.rows,
            "max_model_len": -1, "kv_cache_memory_bytes": int(self.kv_cache_gib * GIB), "block_size": BLOCK_SIZE,
            "enable_prefix_caching": True, "enforce_eager": not cuda, "enable_sleep_mode": cuda, "seed": 0,
            "async_scheduling": not v1, "disable_log_stats": True,
        }  # fmt: skip
        if ranks := _ranks():
            settings["distributed_executor_backend"] = "external_launcher"
        name, longest = type(model.model).__name__, architectures.positions(model.model.config.to_dict())
        if longest and longest < model.model.config.max_position_embeddings:  # vLLM itself would allow the latter
            settings["max_model_len"] = longest
        if v1:
            settings["worker_cls"] = "ngrpo.rollout.engines.vllm.v1.Worker"
        else:
            settings["hf_overrides"] = {"architectures": [plugin.PREFIX + name]}
        self.options = {"enable_sleep_mode": cuda, **self.options}
        with tempfile.TemporaryDirectory() as place, undisturbed(ranks):
            config = copy.deepcopy(model.model.config)
            config.architectures = [name]  # missing where a model was never saved
            config.save_pretrained(place)
            try:
                return import_module("vllm").LLM(model=place, **{**settings, **self.options})
            except ValueError as error:
                message = " ".join(str(error).split()).partition(" [type=")[0][:300]
                more = f"engine.kv_cache_gib={self.kv_cache_gib * 2:g} doubles it"
                fix = more if "memory" in message or "cache" in message else "engine=transformers"
                raise SettingsError(f"engine=vllm: vLLM does not start ({message}); {fix}") from error

    def _refuse_long(self, prompt: int, limit: int) -> None:
        most = self.llm.llm_engine.model_config.max_model_len
        if prompt + limit > most:
            room = f"engine.kv_cache_gib={self.kv_cache_gib:g} holds rows of {most} tokens at most"
            raise SettingsError(
                f"max_new_tokens={limit}: with a prompt of {prompt} tokens it does not fit, {room}; "
                f"engine.kv_cache_gib={self.kv_cache_gib * (prompt + limit) / most * 1.01:.3g}"
            )


def host(worker: Any, session: Session | None) -> None:
    """Inside vLLM: from now on the session feeds and samples its rows."""
    runner = worker.worker.model_runner
    (runner if hasattr(runner, "host") else runner.model_state).host(session)


def _ranks() -> dict[str, str]:
    """This training process's rank, as the variables of a launcher that vLLM reads; none where there is one process.

    With them vLLM takes the existing process group for a launcher's, and runs an engine in every rank.
    """
    distributed = torch.distributed
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return {}
    rank = distributed.get_rank()
    return {"RANK": str(rank), "LOCAL_RANK": os.environ.get("LOCAL_RANK", str(rank))}


@contextmanager
def undisturbed(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and afterwards restores them, random generators and torch.set_num_threads.

    vLLM seeds the generators and replaces that function when it starts; a run must go on with the numbers that it would
    have drawn.
    """
    state, setter, threads, before = rng_state(), torch.set_num_threads, torch.get_num_threads(), dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in variables if name in before})
        torch.set_num_threads = setter
        torch.set_num_threads(threads)
        set_rng_state(state)
