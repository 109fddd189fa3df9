"""Whether exploration is a model's and task's bottleneck, told from samples of the untrained model, before anyone trains.

python diagnose.py model=<directory or hub id> task=jsonl task.path=<file>
python diagnose.py strategies='[token_sampling,neighbor_mix,rate_matched_greedy]' mix_rate=0.3
"""

import os
from typing import Any

from omegaconf import DictConfig

from ngrpo import command_line, files, records
from ngrpo.settings import SettingsError


def main(config: DictConfig) -> dict[str, Any]:
    """Compose, sample, diagnose, report; the same command again continues where it was interrupted."""
    from analysis import diagnosis, diagnosis_page

    plain, versions = command_line.plain(config), command_line.data_versions(config)
    digest = records.config_hash(plain, versions)
    info = {"threads": os.cpu_count(), "batch_plan": {key: config[key] for key in ("n", "rows_per_batch")}}
    opened = records.RunDirectory.open(
        command_line.run_path(), plain, hash=digest, fresh=config.fresh, info=info, versions=versions
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
    import torch

    from ngrpo.diagnose import Draw, chosen, draw_all, finish, token_of
    from ngrpo.evaluate import Sampler, fitting, note_left_out
    from ngrpo.models import causal
    from ngrpo.models.prompting import Prompting
    from ngrpo.progress import Progress

    nodes = command_line.compositions(list(config.strategies))
    run.update(compositions={name: command_line.plain(node.exploration) for name, node in nodes.items()})
    if (run.path / "timings.csv").exists():
        return
    tokenizer = causal.load_tokenizer(config.model.path, config.model.trust_remote_code)
    try:
        named = [token_of(tokenizer, str(text)) for text in config.tokens]
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    device, model_node = "cuda" if torch.cuda.is_available() else "cpu", config.model
    trust = model_node.trust_remote_code
    model = causal.load(model_node.path, model_node.dtype, model_node.attention, trust_remote_code=trust).to(device)
    task, prompting = command_line.build(config.task), Prompting(model_node.prompt, model_node.answer_start)
    words = causal.vocabulary(tokenizer, model, prompting.answer_start, task.answer_prefix)
    samplers = {}
    for name, node in nodes.items():
        strategy = command_line.build(node.exploration).to(device)
        strategy.bind(words, model.table.detach())
        strategy.prepare(model.table.detach(), 0, model.head.detach())
        samplers[name] = Sampler(model, tokenizer, strategy, config.max_new_tokens, prompting)
    first = next(iter(samplers.values()))
    task = fitting(first, task)
    note_left_out(run, {task.name: task})
    draw = Draw(task, chosen(task, config.problems, config.seed), config.n, config.rows_per_batch, config.seed, run.path)
    progress = Progress(0)
    progress.bars.start()
    bar = progress.bars.add_task("sampling", total=len(draw.plan) * len(samplers), note="")
    try:
        draw_all(samplers, draw, lambda name: progress.bars.update(bar, advance=1, note=name))
    finally:
        progress.stop()
    finish(draw, first, list(samplers), named)


if __name__ == "__main__":
    command_line.prepare("diagnose")
    command_line.run(main, "diagnose")
