"""Sample benchmarks with a trained run or any Hugging Face model and print the Pass@k table.

python evaluate.py run=outputs/story_math/<run>
python evaluate.py model=<directory or hub id> benchmark='[story_math,story_math_hard]' n=32
"""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ngrpo import cli
from ngrpo.rundir import records


def main(config: DictConfig) -> dict[str, Any]:
    """Compose, build, sample, report; the same command again continues where it was interrupted."""
    from ngrpo.rundir.progress import print_results

    directory = cli.run_path()
    trained = json.loads(Path(config.run, "run.json").read_text("utf-8")) if config.run else {}
    asked = trained.get("config", {}).get("model", {})  # a run's own model is asked, and read, as it was in training
    config.model.update({key: asked[key] for key in ("prompt", "answer_start") if key in asked})
    versions = cli.data_versions(config)
    plain = cli.plain(config)
    digest = records.config_hash(plain, versions)
    info = {"threads": os.cpu_count(), "batch_plan": {key: config[key] for key in ("n", "rows_per_batch")}}
    opened = records.RunDirectory.open(directory, plain, hash=digest, fresh=config.fresh, info=info, versions=versions)
    with opened as run:
        if run.status == "finished":
            print("already evaluated; fresh=true starts anew")
        else:
            sample(config, run, trained)
            run.finish()
        print_results(run.read_results(), run.path)
        return run.read_results()


def sample(config: DictConfig, run: records.RunDirectory, trained: dict[str, Any]) -> None:
    """Draw every benchmark batch that is not there yet and write results.json."""
    import torch
    from safetensors.torch import load_file

    from ngrpo.models import causal
    from ngrpo.models.prompting import Prompting
    from ngrpo.rollout.sampling import Evaluation, Sampler, fitting, note_left_out
    from ngrpo.rundir.progress import Progress
    from ngrpo.rundir.recorder import STRATEGY_FILE, Interrupted, Interrupts

    interrupts = Interrupts()
    path = str(Path(config.run, "hf")) if config.run else config.model.path
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trust = config.model.trust_remote_code
    model = causal.load(path, config.model.dtype, config.model.attention, trust_remote_code=trust).to(device)
    tokenizer = causal.load_tokenizer(path, trust)
    benchmarks = {name: cli.build(node) for name, node in config.benchmark.items()}
    task, strategy = next(iter(benchmarks.values())), cli.build(config.exploration).to(device)
    prompting = Prompting(config.model.prompt, config.model.answer_start)
    strategy.bind(causal.vocabulary(tokenizer, model, prompting.answer_start, task.answer_prefix), model.table.detach())
    step = trained.get("config", {}).get("steps", 0)
    strategy.prepare(model.table.detach(), step, model.head.detach())
    learned = Path(path, STRATEGY_FILE)
    if learned.is_file():
        strategy.load_state_dict(load_file(learned), strict=False)
    sampler = Sampler(model, tokenizer, strategy, config.max_new_tokens, prompting)
    benchmarks = {name: fitting(sampler, benchmark) for name, benchmark in benchmarks.items()}
    note_left_out(run, benchmarks)
    evaluation = Evaluation(benchmarks, config.n, config.rows_per_batch, max_errors=config.grading.max_errors)
    labels = {"run": run.path.name, "seed": config.seed, "step": step, "algorithm": "none"}
    labels |= cli.choices("exploration")
    progress = Progress(step)

    def advance(benchmark: str, tokens: int) -> None:
        progress.batch(benchmark, tokens)
        if interrupts.number:
            raise Interrupted(interrupts.number, step)

    progress.bars.start()
    try:
        progress.evaluation(step, evaluation.batches())
        for name, entry in evaluation.run(sampler, run.path, labels, advance):
            run.record_result(name, step, entry)
    finally:
        progress.stop()


if __name__ == "__main__":
    cli.prepare("evaluate")
    cli.run(main, "evaluate")
