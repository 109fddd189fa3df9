"""From a configuration to all that an entry point needs; each configured node is built at most once per process."""

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from transformers import set_seed

from ngrpo import composed
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.combinations import refusals
from ngrpo.evaluation.benchmarks import Evaluation
from ngrpo.evaluation.diagnosis import Draw, chosen_problems, token_of
from ngrpo.evaluation.pruning import PruningReporter
from ngrpo.exploration.base import Exploration
from ngrpo.models import architectures, files
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, read_config, vocabulary
from ngrpo.models.prompting import Prompting, Prompts
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.perturbed import Perturbed
from ngrpo.rollout.sampling import Sampler
from ngrpo.rundir import checkpoints
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.interrupts import INTERRUPTS
from ngrpo.rundir.progress import Progress
from ngrpo.rundir.provenance import threads
from ngrpo.rundir.recorder import Recorder
from ngrpo.rundir.schema import STRATEGY_FILE, read_run
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Subset, Task
from ngrpo.tasks.rewards import Rewarded
from ngrpo.training.matching import Matching

if TYPE_CHECKING:  # at run time only where something is trained: Lightning takes seconds to import
    from ngrpo.cli.identity import Request
    from ngrpo.loop import Parts
    from ngrpo.training.policy import Policy


def training(request: "Request", run: RunDirectory | None) -> "Parts":
    """Everything that loop.run takes; `run` is None on every rank but the first."""
    from ngrpo.loop import Parts
    from ngrpo.training.reference import Reference

    config = request.config
    INTERRUPTS.listen()  # a launcher's own process has had no entry point that does
    torch.set_num_threads(threads(config.trainer.threads))
    set_seed(config.seed)
    engine, strategy, other = _engine(config, config.exploration, config.evaluation.exploration)
    algorithm, rewarded = composed.instantiate(config.algorithm), _rewarded(config)
    if found := refusals(algorithm, map(str, config.extra_rewards)):
        raise SettingsError(found)
    prompts = _prompts(config)
    perturbed = Perturbed(algorithm.retry, prompts) if algorithm.retry else None
    trained = (perturbed or prompts).read(rewarded)
    benchmarks = {name: prompts.read(benchmark) for name, benchmark in composed.tasks(config).items()}
    model = causal_model(config, config.model.lora)
    sampler = _sampler(engine, strategy, model, prompts, trained, config.max_new_tokens, perturbed)
    evaluator = _sampler(engine, other, model, prompts, trained, config.max_new_tokens)
    policy = _policy(config, model, strategy, algorithm)
    if run:
        _record_facts(config, run, sampler, {"training": trained, **benchmarks})
        checkpoints.refuse_full(run.path, *policy.on_disk(), min(config.checkpoints.keep + 1, config.steps))
    reference = None
    if algorithm.needs_reference:  # with adapters no second copy is needed: they are switched off for it
        reference = Reference(model if model.adapters else causal_model(config))
    trial = config.get("sweep", {}).get("trial")
    return Parts(
        policy=policy,
        reference=reference,
        sampler=sampler,
        task=trained,
        evaluation=_evaluation(config, evaluator, benchmarks),
        directory=request.directory,
        labels=request.labels("exploration", "algorithm"),
        progress=Progress(config.steps, quiet=run is None),
        recorder=_recorder(config, run) if run else None,
        reporter=PruningReporter(trial) if trial else None,
        matching=_matching(config, run, sampler, model, config.trainer.micro_batch_rows),
        keep=config.checkpoints.keep,
    )


def evaluation(request: "Request", run: RunDirectory) -> tuple[Evaluation, CausalModel, int]:
    """What evaluate.py samples, the model it samples from, and the RL step that this stands at; notes what is left out."""
    config = request.config
    step = read_run(config.run, trust_changed=config.trust_changed).config.get("steps", 0) if config.run else 0
    engine, strategy = _engine(config, config.exploration)
    prompts = _prompts(config)
    benchmarks = {name: prompts.read(benchmark) for name, benchmark in composed.tasks(config).items()}
    model = _inference_model(config)
    first = next(iter(benchmarks.values()))
    sampler = _sampler(engine, strategy, model, prompts, first, config.max_new_tokens)
    _record_facts(config, run, sampler, benchmarks)
    learned = Path(str(config.run), "hf", STRATEGY_FILE)
    if config.run and learned.is_file():
        strategy.load_state_dict(load_file(learned), strict=False)
    if matching := _matching(config, run, sampler, model):
        matching.settle(model)
    return _evaluation(config, sampler, benchmarks), model, step


def diagnosis(
    request: "Request", run: RunDirectory, nodes: Mapping[str, DictConfig]
) -> tuple[Draw, dict[str, Sampler], list[int]]:
    """What diagnose.py draws, a sampler for each strategy, all of one model, and the tokens whose neighbors are wanted."""
    config = request.config
    prompts = _prompts(config)
    tokens = [token_of(prompts.tokenizer, str(text)) for text in config.tokens]
    engine, *strategies = _engine(config, *nodes.values())
    task = prompts.read(composed.task(config.task))
    model = _inference_model(config)
    samplers = {
        name: _sampler(engine, strategy, model, prompts, task, config.max_new_tokens)
        for name, strategy in zip(nodes, strategies, strict=True)
    }
    _record_facts(config, run, next(iter(samplers.values())), {task.name: task})
    for sampler in samplers.values():
        if matching := _matching(config, run, sampler, model):
            matching.settle(model)
    engine.sync(model, 0, *(sampler.strategy for sampler in samplers.values()))
    problems = chosen_problems(task, config.problems, config.seed)
    return Draw(model, task, problems, config.n, config.rows_per_batch, config.seed, run.path), samplers, tokens


def causal_model(config: DictConfig, lora: DictConfig | None = None) -> CausalModel:
    """The model, in the precision that the trainer asks for, with adapters where `lora` has a rank."""
    model, trainer = config.model, config.get("trainer") or {}
    return load(
        composed.model_path(config),
        model.dtype,
        trainer.get("precision", "float32"),
        lora=lora,
        recompute=trainer.get("gradient_checkpointing", False),
        trust_remote_code=model.trust_remote_code,
    )


def _inference_model(config: DictConfig) -> CausalModel:
    """The model where nothing is trained, on a GPU if there is one, with torch's own number of threads unless one is set."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    return causal_model(config).to("cuda" if torch.cuda.is_available() else "cpu")


def _evaluation(config: DictConfig, sampler: Sampler, benchmarks: Mapping[str, Task]) -> Evaluation:
    settings = composed.batching(composed.plain(config))
    return Evaluation(sampler, benchmarks, **settings, max_errors=config.grading.max_ungraded_share)


def _record_facts(config: DictConfig, run: RunDirectory, sampler: Sampler, read: Mapping[str, Task]) -> None:
    """Puts in run.json how the model is asked, what was settled about the data, how many prompts are too long, what the
    model's vocabulary was cut from, and the control whose rewards are trained on."""
    if counts := {name: one.left_out for name, one in read.items() if isinstance(one, Subset)}:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        print(f"note: prompts that are too long for the model are left out: {listed}")
    notes = {name: lines for name, one in read.items() if (lines := getattr(one, "notes", None))}
    facts = {"left_out": counts, "data_notes": notes, "asked": sampler.prompts.report(sampler.strategy.vocabulary)}
    facts["trimmed"] = files.trimmed(composed.model_path(config))
    facts["control"] = str(OmegaConf.select(config, "algorithm.control._target_") or "").rpartition(".")[2]
    run.save(**{name: fact for name, fact in facts.items() if fact})


def _engine(config: DictConfig, *strategies: DictConfig) -> tuple[Any, ...]:
    """The engine and the strategies, if it can run them; asked before anything is loaded."""
    engine: Engine = composed.instantiate(config.engine)
    built = [composed.instantiate(node) for node in strategies]
    for strategy in (*built, *(strategy.matched.strategy for strategy in built if strategy.matched)):
        if refusal := engine.refuses(strategy, composed.model_path(config)):
            raise SettingsError([refusal])
    return engine, *built


def _prompts(config: DictConfig) -> Prompts:
    """Before the model is loaded, so that a prompt that cannot be made is refused before that."""
    path, trusted = composed.model_path(config), config.model.trust_remote_code
    settings = read_config(path, trusted).to_dict()
    room = (architectures.positions(settings) or 2**31) - config.max_new_tokens
    prompting = Prompting(config.model.prompt, config.model.answer_start, tuple(config.model.stop))
    return Prompts(load_tokenizer(path, trusted), prompting, room, settings["vocab_size"])


def _sampler(
    engine: Engine,
    strategy: Exploration,
    model: CausalModel,
    prompts: Prompts,
    task: Task,
    limit: int,
    perturbed: Perturbed | None = None,
) -> Sampler:
    """The strategy is on the model's device from here on, and knows its vocabulary."""
    tokenizer, prompting = prompts.tokenizer, prompts.prompting
    stops = prompting.stops(tokenizer)
    words = vocabulary(tokenizer, model, prompting.answer_start, task.answer_prefix, stops)
    with model.gathered():
        strategy.to(model.head.device).bind(words, model.table.detach())
    return Sampler(engine, strategy, prompts, limit, perturbed)


def _matching(
    config: DictConfig, run: RunDirectory | None, sampler: Sampler, model: CausalModel, micro_rows: int = 32
) -> Matching | None:
    """What sets the temperature of the sampler's strategy, where it is matched to another one."""
    if not (matched := sampler.strategy.matched):
        return None
    task = sampler.prompts.read(_held_out(config, matched.problems))
    other = _sampler(sampler.engine, matched.strategy, model, sampler.prompts, task, sampler.max_new_tokens)
    rows = config.get("evaluation", config).rows_per_batch
    return Matching(sampler, other, matched.name, task, config.seed, rows, micro_rows, run)


def _held_out(config: DictConfig, most: int) -> Task:
    """At most so many problems to find a value on: of the split `val` of the task or first benchmark, where it has one,
    else of its own problems, whose answers nobody looks at."""
    node = composed.plain(config.task if config.get("task") else next(iter(config.benchmark.values())))
    if {"split", "size"} <= node.keys():  # problems that are made as they are asked for
        with suppress(ValueError):
            return composed.task({**node, "split": "val", "size": min(most, node["size"])})
    whole = composed.task(node)
    return Subset(whole, whole.problems[:most])


def _rewarded(config: DictConfig) -> Task:
    """What is trained on, with the rewards that are added to its own."""
    functions = {str(name): composed.instantiate(node, partial=True) for name, node in config.extra_rewards.items()}
    return Rewarded(composed.task(config.task), functions) if functions else composed.task(config.task)


def _policy(config: DictConfig, model: CausalModel, strategy: Exploration, algorithm: Algorithm) -> "Policy":
    from ngrpo.training.collect import TrainingConfig
    from ngrpo.training.critic import Critic
    from ngrpo.training.policy import Policy

    names = ("steps", "prompts_per_step", "group_size", "learning_rate", "seed", "eval_every", "checkpoint_every")
    sizes = TrainingConfig(
        **{name: config[name] for name in names},
        micro_batch_rows=config.trainer.micro_batch_rows,
        evaluate_before=config.evaluation.before,
        **composed.plain(config.optimizer),
    )
    return Policy(model, strategy, algorithm, sizes, Critic(causal_model(config)) if algorithm.critic else None)


def _recorder(config: DictConfig, run: RunDirectory) -> Recorder:
    """With the loggers of the configuration; run.json says where to find what they hold."""
    if not config.get("logger"):
        return Recorder(run)
    from ngrpo.training.tracking import Trackers  # Lightning's loggers take seconds to import

    content = {name: node for name, node in composed.plain(config).items() if name not in ("schema", "hydra")}
    make = functools.partial(composed.instantiate, save_dir=run.path)
    trackers = Trackers({name: functools.partial(make, node) for name, node in content["logger"].items()}, content)
    run.save(trackers=trackers.links)
    return Recorder(run, trackers)
