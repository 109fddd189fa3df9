"""How far the densities of `stht` are from float64: those that each engine recorded, and the replay of each.

.venv-vllm/bin/python -m experiments.engines.densities
"""

from copy import deepcopy
from dataclasses import replace

import torch

from experiments.engines.run import GROUP, TINY
from ngrpo.cli import each_strategy
from ngrpo.composed import instantiate
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN, Prompts
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.rollout.engines.vllm.engine import VllmEngine
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.records import GAUSSIAN
from ngrpo.rollout.sampling import padded
from ngrpo.tasks.story_math import StoryMath
from ngrpo.training.replay import replay

PROMPTS, LIMIT = 16, 64


@torch.no_grad()
def main() -> None:
    """Prints, for each engine, the largest and the mean distance in nats of one step."""
    torch.set_num_threads(1)
    model, exact = load(TINY), load(TINY, "float64")
    read = Prompts(load_tokenizer(TINY), PLAIN, room=400)
    task = read.read(StoryMath("train", [2], 64))
    ids, mask = padded([read.ids[problem.prompt, problem.is_message] for problem in task.problems[:PROMPTS]], 0)
    keys = row_keys([("parity", row) for row in range(PROMPTS * GROUP)])
    strategy = instantiate(each_strategy([])[0]["stht"].exploration)
    strategy.bind(vocabulary(read.tokenizer, model, "</think>", task.answer_prefix), model.table.detach())
    for engine in (VllmEngine(kv_cache_gib=0.0625, rows=48), TransformersEngine()):
        engine.sync(model, 0, strategy)
        rollouts = engine.generate(strategy, ids, mask, keys, LIMIT)
        engine.close()
        steps = rollouts.steps.map(lambda values: values.double() if values.is_floating_point() else values)
        truth = replay(exact, deepcopy(strategy).double(), replace(rollouts, steps=steps)).log_probs
        dense = (rollouts.steps.role == GAUSSIAN) & rollouts.mask
        replayed = replay(model, strategy, rollouts).log_probs
        for name, found in (("recorded", rollouts.log_probs), ("replayed", replayed)):
            off = (found - truth).abs()[dense]
            print(type(engine).__name__, name, f"{len(off)} steps, largest {off.max():.1e}, mean {off.mean():.1e}")


if __name__ == "__main__":
    main()
