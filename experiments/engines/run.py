"""The parity table: every strategy by engine=vllm and by the reference engine, on three small models.

    .venv-vllm/bin/python -m experiments.engines.run [second]

`second`: vLLM's second model runner with interpreted kernels, under TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1.
"""

import csv
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from ngrpo.cli import each_strategy
from ngrpo.composed import instantiate
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.parity import parity
from ngrpo.rollout.engines.vllm.engine import VllmEngine
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.story_math import StoryMath

TINY, GROUP = "ngrpo:tiny", 8
SIZES = {
    "vocab_size": 192, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


def random_model(kind: type[PreTrainedModel], config: Qwen3Config | LlamaConfig) -> CausalModel:
    """Of the bundled model's shape, with weights so large that its logits are far from uniform."""
    torch.manual_seed(0)
    return CausalModel(kind(config).eval())


def models() -> dict[str, CausalModel]:
    """The bundled one (tied), and random ones of two architectures, one tied and one not."""
    return {
        "bundled Qwen2": load(TINY),
        "random Qwen3": random_model(Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True)),
        "random Llama": random_model(LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    }


def rows_of(name: str, model: CausalModel, prompts: int, limit: int, engine: VllmEngine) -> list[dict]:
    """One row per strategy."""
    read = Prompts(load_tokenizer(TINY), PLAIN, room=400)
    task = read.read(StoryMath("train", [2], 64))
    words = vocabulary(read.tokenizer, model, "</think>", task.answer_prefix)
    ids, mask = padded([read.ids[problem.prompt, problem.is_message] for problem in task.problems[:prompts]], 0)
    keys, found = row_keys([("parity", row) for row in range(prompts * GROUP)]), []
    configurations, problems = each_strategy([])
    assert not problems
    for strategy_name, config in configurations.items():
        strategy = instantiate(config.exploration)
        strategy.bind(words, model.table.detach())
        engine.sync(model, 0, strategy)
        ours = engine.generate(strategy, ids, mask, keys, limit)
        row = {"model": name, "strategy": strategy_name} | asdict(parity(model, strategy, ours, ids, mask, limit))
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    """Writes parity.csv, or parity_second_runner.csv."""
    second, found = "second" in sys.argv[1:], []
    torch.set_num_threads(1)
    prompts, limit = (2, 16) if second else (16, 64)
    if second:
        _interpret()
    for name, model in list(models().items())[: 1 if second else None]:
        engine = VllmEngine(kv_cache_gib=0.0625, rows=48, options={"max_num_batched_tokens": 128})
        found += rows_of(name, model, prompts, limit, engine)
        engine.close()
    path = Path(__file__).with_name("parity_second_runner.csv" if second else "parity.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _interpret() -> None:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
    import interpreted

    interpreted.install()


if __name__ == "__main__":
    main()
