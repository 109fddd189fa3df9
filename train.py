"""Train a policy with an exploration strategy, and evaluate it before and after.

python train.py exploration=neighbor_mix mix_rate=0.1 k=3
"""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ngrpo import cli
from ngrpo.rundir import records

SIZES = ("n", "rows_per_batch", "problems")  # of an evaluation: the batch plan


def main(config: DictConfig) -> dict[str, Any] | None:
    """Compose, build, run, report; returns the content of results.json, None on all ranks but the first."""
    from ngrpo.evaluation.pruning import Pruned
    from ngrpo.rundir.progress import print_results

    if config.trainer.get("plan"):
        return print_plan(config)
    directory = cli.run_path()
    plain, versions = cli.plain(config), cli.data_versions(config)
    if int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0)):
        return train(config, directory, None)
    plan = {key: config.evaluation[key] for key in SIZES}
    info = {"threads": config.trainer.threads or os.cpu_count(), "batch_plan": plan, **shared_problems(config)}
    digest = records.config_hash(plain, versions)
    opened = records.RunDirectory.open(directory, plain, hash=digest, fresh=config.fresh, info=info, versions=versions)
    with opened as run:
        if run.status == "finished":
            print(f"already finished at RL step {config.steps}; fresh=true starts anew")
        else:
            try:
                train(config, directory, run)
            except Pruned as stop:
                print(stop)
                return {"pruned": str(stop)}
            run.finish()
        print_results(run.read_results(), run.path)
        return run.read_results()


def train(config: DictConfig, directory: Path, run: records.RunDirectory | None) -> None:
    """Build everything and let Lightning walk through the RL steps."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from ngrpo.rollout.sampling import fitting, note_left_out
    from ngrpo.rundir.recorder import Interrupts

    quiet_lightning()
    interrupts = Interrupts()
    torch.set_num_threads(config.trainer.threads or os.cpu_count() or 1)
    seed_everything(config.seed, verbose=False)
    task = build_task(config)
    sampler = build_sampler(config, config.exploration, task)
    task = fitting(sampler, task)
    recorder = build_recorder(config, directory, run, sampler, task, interrupts)
    note_left_out(run, {"training": task, **recorder.evaluation.benchmarks})
    policy = build_policy(config, sampler, task, recorder)
    trainer = Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy=config.trainer.strategy,
        max_epochs=1,
        logger=cli.build(config.logger, save_dir=directory) if config.get("logger") and run else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
    )
    steps = range(policy.done, config.steps + 1)
    recorder.progress.start(policy.done)
    try:
        trainer.fit(policy, torch.utils.data.DataLoader(steps, batch_size=None))  # pyright: ignore
    finally:
        recorder.progress.stop()


def shared_problems(config: DictConfig) -> dict[str, Any]:
    """For run.json: how many problems of each benchmark stand in the training set, told where there are any."""
    from ngrpo.tasks.overlap import overlap

    benchmarks = {name: cli.build(node) for name, node in config.benchmark.items()}
    found = overlap(cli.build(config.task), benchmarks)
    for name, counts in found.items():
        if any(counts.values()):
            print(f"note: of {name}, {counts['exact']} problems are in the training set and {counts['near']} nearly so")
    return {"overlap": found} if found else {}


def print_plan(config: DictConfig) -> None:
    """What one process of this run will need, and whether the devices here have it."""
    from ngrpo.models import sizes as plan

    share = config.prompts_per_step // config.trainer.devices
    lora = config.model.lora and config.model.lora.r
    sizes = plan.Sizes(
        rows=share * config.group_size,
        prompts=share,
        prompt_tokens=config.trainer.plan.prompt_tokens,
        new_tokens=config.max_new_tokens,
        micro_rows=config.trainer.micro_batch_rows,
        dtype=config.model.dtype,
        precision=config.trainer.precision,
        lora=config.model.lora,
        copies=int(config.algorithm.kl.coefficient > 0 and not lora),
        critics=int(bool(config.algorithm.critic)),
        recompute=config.trainer.gradient_checkpointing,
        k=config.exploration.get("k", 0),
        update_rows=share // config.algorithm.mini_batches * config.group_size,
        device="cuda" if config.trainer.accelerator == "gpu" else "cpu",
    )
    print(plan.told(plan.needs(plan.architecture(config.model.path), sizes), plan.available()))


def quiet_lightning() -> None:
    """Lightning's banners and its advice on loops that are not ours to follow: the run has its own progress."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def build_task(config: DictConfig) -> Any:
    """What is trained on, with the rewards that are added to its own."""
    from ngrpo.tasks.rewards import Rewarded

    functions = {name: cli.build(node, partial=True) for name, node in config.reward.items()}
    task = cli.build(config.task)
    return Rewarded(task, functions) if functions else task


def build_policy(config: DictConfig, sampler: Any, task: Any, recorder: Any) -> Any:
    """The policy with its algorithm, and the reference and critic where that wants them."""
    from ngrpo.training.collect import Training
    from ngrpo.training.critic import Critic
    from ngrpo.training.policy import Policy
    from ngrpo.training.reference import Base, Reference

    algorithm = cli.build(config.algorithm)
    training = Training(
        steps=config.steps,
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        micro_batch_rows=config.trainer.micro_batch_rows,
        **cli.plain(config.optimizer),
    )
    reference = None
    if algorithm.kl["coefficient"] > 0:
        reference = Base(sampler.model) if sampler.model.adapters else Reference(load_model(config))
    critic = Critic(load_model(config)) if algorithm.critic else None
    return Policy(sampler, task, algorithm, training, recorder, reference, critic)


def build_recorder(
    config: DictConfig, directory: Path, run: records.RunDirectory | None, sampler: Any, task: Any, interrupts: Any
) -> Any:
    """What keeps the run directory, with the benchmarks and the strategy that they are sampled with."""
    from ngrpo.evaluation.pruning import Judge
    from ngrpo.rollout.sampling import Evaluation, fitting
    from ngrpo.rundir.progress import Progress
    from ngrpo.rundir.recorder import Recorder

    evaluator = build_sampler(config, config.evaluation.exploration, task, sampler)
    benchmarks = {name: fitting(evaluator, cli.build(node)) for name, node in config.benchmark.items()}
    trial = config.get("sweep", {}).get("trial")
    return Recorder(
        run=run,
        directory=directory,
        labels={"run": directory.name, "seed": config.seed, **cli.choices("exploration", "algorithm")},
        evaluation=Evaluation(
            benchmarks, **{key: config.evaluation[key] for key in SIZES}, max_errors=config.grading.max_errors
        ),
        evaluator=evaluator,
        steps=config.steps,
        eval_every=config.eval_every,
        evaluate_before=config.evaluation.before,
        checkpoint_every=config.checkpoint_every,
        progress=Progress(config.steps, quiet=run is None),
        interrupts=interrupts,
        judge=Judge(trial) if trial else None,
    )


def load_model(config: DictConfig, lora: DictConfig | None = None) -> Any:
    """The base model, in the precision that the trainer asks for, with adapters where `lora` has a rank."""
    from ngrpo.models import causal

    model, trainer = config.model, config.trainer
    return causal.load(
        model.path,
        model.dtype,
        model.attention,
        trainer.precision,
        lora=lora,
        recompute=trainer.gradient_checkpointing,
        trust_remote_code=model.trust_remote_code,
    )


def build_sampler(config: DictConfig, strategy: DictConfig, task: Any, like: Any = None) -> Any:
    """A sampler under `strategy`, with the model and tokenizer of `like` where one is given."""
    from ngrpo.models import causal
    from ngrpo.models.prompting import Prompting
    from ngrpo.rollout.sampling import Sampler

    tokenizer = like.tokenizer if like else causal.load_tokenizer(config.model.path, config.model.trust_remote_code)
    model = like.model if like else load_model(config, config.model.lora)
    built = cli.build(strategy)
    prompting = Prompting(config.model.prompt, config.model.answer_start)
    built.bind(causal.vocabulary(tokenizer, model, prompting.answer_start, task.answer_prefix), model.table.detach())
    return Sampler(model, tokenizer, built, config.max_new_tokens, prompting)


if __name__ == "__main__":
    cli.prepare("config")
    cli.run(main)
