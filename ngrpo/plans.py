"""What a configuration needs of a machine, from shapes alone: nothing but the strategy and the algorithm is built."""

from omegaconf import DictConfig

from ngrpo import composed, targets
from ngrpo.models import sizes
from ngrpo.models.devices import Work

TOKENS_OF_WORD = 2  # of "lorem ipsum": 1.3 on average in Qwen's and 1.7 in DeepSeek's tokenizer


def needs(config: DictConfig) -> sizes.Plan:
    """What one process of a run will need."""
    share, lora = config.prompts_per_step // config.trainer.devices, config.model.lora and config.model.lora.r
    strategy, algorithm = composed.instantiate(config.exploration), composed.instantiate(config.algorithm)
    retry = algorithm.retry
    return sizes.needs(
        sizes.architecture(config.model.path),
        sizes.Sizes(
            rows=share * config.group_size,
            prompts=share,
            prompt_tokens=config.plan.prompt_tokens,
            new_tokens=config.max_new_tokens,
            micro_rows=config.trainer.micro_batch_rows,
            dtype=config.model.dtype,
            precision=config.trainer.precision,
            lora=config.model.lora,
            copies=int(algorithm.needs_reference and not lora),
            critics=int(bool(config.algorithm.critic)),
            recompute=config.trainer.gradient_checkpointing,
            k=next((part["k"] for _, part in targets.nodes(composed.plain(config.exploration)) if "k" in part), 0),
            update_rows=share // config.algorithm.mini_batches * config.group_size,
            device="cuda" if config.plan.device or config.trainer.accelerator == "gpu" else "cpu",
            engine_cache=int(config.engine.get("kv_cache_gib", 0) * 2**30),
            engine_dtype=config.engine.get("dtype", "float32"),
            ranks=config.trainer.devices if config.trainer.strategy == "fsdp" else 1,
            replicas=config.trainer.strategy == "ddp",
            records_vectors=strategy.records_vectors,
            acts_on=strategy.acts_on,
            retry_prompts=max(1, share * config.group_size // retry.each) * retry.prompts if retry else 0,
            retry_tokens=config.plan.prompt_tokens + retry.words[1] * TOKENS_OF_WORD if retry else 0,
        ),
    )


def work(config: DictConfig) -> Work:
    """What a run repeats, from which its time is estimated."""
    algorithm = composed.instantiate(config.algorithm)
    return Work(
        steps=config.steps,
        answer_tokens=config.plan.answer_tokens or config.max_new_tokens,
        slots=config.engine.get("rows"),
        learning_passes=algorithm.inner_epochs * (1 + bool(algorithm.critic)),
        scoring_passes=algorithm.needs_old_log_probs + algorithm.regularized + (algorithm.bonus is not None),
    )
