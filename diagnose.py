"""Whether exploration is a model's and task's bottleneck, told from samples of the untrained model, before anyone trains.

python diagnose.py model=<directory or hub id> task=jsonl task.path=<file>
python diagnose.py strategies='[token_sampling,neighbor_mix,rate_matched_greedy]' mix_rate=0.3
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ngrpo import cli
from ngrpo.cli.settings import SettingsError
from ngrpo.rundir import files, records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ngrpo.rollout.sampling import Sampler
    from ngrpo.tasks.base import Task


def main(config: DictConfig) -> dict[str, Any]:
    """Compose, sample, diagnose, report; the same command again continues where it was interrupted."""
    from analysis import diagnosis, diagnosis_page

    plain, versions = cli.plain(config), cli.data_versions(config)
    digest = records.config_hash(plain, versions)
    info = {"threads": os.cpu_count(), "batch_plan": {key: config[key] for key in ("n", "rows_per_batch")}}
    opened = records.RunDirectory.open(
        cli.run_path(), plain, hash=digest, fresh=config.fresh, info=info, versions=versions
    )
    with opened as run:
        done = run.status == "finished"
        if done:
            print("already diagnosed; fresh=true starts anew")
        else:
            sample(config, run)
        found = diagnosis.diagnose(diagnosis.read(run.path))
        if not done:
            for name, content in diagnosis_page.files_of(found, run.path).items():
                files.write_atomically(run.path / name, content)
            run.finish()
        print(diagnosis_page.terminal(found, run.path))
        return found.figures


def sample(config: DictConfig, run: records.RunDirectory) -> None:
    """Draw every batch that is not there yet, under each strategy."""
    from ngrpo.evaluation.diagnosis import Draw, chosen, draw_all, finish, token_of
    from ngrpo.models import causal
    from ngrpo.rollout.sampling import fitting, note_left_out
    from ngrpo.rundir.progress import Progress

    composed = cli.compositions(list(config.strategies))
    nodes = {name: part.exploration for name, part in composed.items()}
    run.update(compositions={name: cli.plain(node) for name, node in nodes.items()})
    if (run.path / "timings.csv").exists():
        return
    tokenizer = causal.load_tokenizer(config.model.path, config.model.trust_remote_code)
    try:
        named = [token_of(tokenizer, str(text)) for text in config.tokens]
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    task = cli.build(config.task)
    samplers = samplers_of(config, nodes, tokenizer, task)
    first = next(iter(samplers.values()))
    task = fitting(first, task)
    note_left_out(run, {task.name: task})
    problems = chosen(task, config.problems, config.seed)
    draw = Draw(task, problems, config.n, config.rows_per_batch, config.seed, run.path)
    progress = Progress(0)
    progress.bars.start()
    bar = progress.bars.add_task("sampling", total=len(draw.plan) * len(samplers), note="")
    try:
        draw_all(samplers, draw, lambda name: progress.bars.update(bar, advance=1, note=name))
    finally:
        progress.stop()
    finish(draw, first, list(samplers), named)


def samplers_of(
    config: DictConfig, nodes: Mapping[str, DictConfig], tokenizer: "PreTrainedTokenizerBase", task: "Task"
) -> dict[str, "Sampler"]:
    """One model, and a sampler of it for each strategy."""
    import torch

    from ngrpo.models import causal
    from ngrpo.models.prompting import Prompting
    from ngrpo.rollout.sampling import Sampler

    asked, device = config.model, "cuda" if torch.cuda.is_available() else "cpu"
    model = causal.load(asked.path, asked.dtype, asked.attention, trust_remote_code=asked.trust_remote_code).to(device)
    prompting, samplers = Prompting(asked.prompt, asked.answer_start), {}
    words = causal.vocabulary(tokenizer, model, prompting.answer_start, task.answer_prefix)
    for name, node in nodes.items():
        strategy = cli.build(node).to(device)
        strategy.bind(words, model.table.detach())
        strategy.prepare(model.table.detach(), 0, model.head.detach())
        samplers[name] = Sampler(model, tokenizer, strategy, config.max_new_tokens, prompting)
    return samplers


if __name__ == "__main__":
    cli.prepare("diagnose")
    cli.run(main, "diagnose")
