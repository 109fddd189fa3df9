"""From a configuration to all that an entry point needs; each configured node is built at most once per process."""

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ngrpo import composed
from ngrpo.models import architectures, files
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.provenance import threads
from ngrpo.rundir.schema import STRATEGY_FILE, read_run
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Subset, Task

if TYPE_CHECKING:
    from ngrpo.algorithm.algorithm import Algorithm
    from ngrpo.cli.identity import Request
    from ngrpo.evaluation.benchmarks import Evaluation
    from ngrpo.evaluation.diagnosis import Draw
    from ngrpo.exploration.base import Exploration
    from ngrpo.models.causal import CausalModel
    from ngrpo.models.prompting import Prompts
    from ngrpo.rollout.engines.base import Engine
    from ngrpo.rollout.perturbed import Perturbed
    from ngrpo.rollout.sampling import Sampler
    from ngrpo.training.matching import Matching
    from ngrpo.training.parts import Parts
    from ngrpo.training.policy import Policy
    from ngrpo.training.tracking import Trackers

BATCHING = ("n", "rows_per_batch", "problems")  # of an evaluation: what is sampled, and how rows are cut into passes


def training(request: "Request", run: RunDirectory | None) -> "Parts":
    """Everything that loop.run takes; `run` is None on every rank but the first."""
    import torch
    from transformers import set_seed

    from ngrpo.algorithm.combinations import refusals
    from ngrpo.evaluation.benchmarks import Evaluation
    from ngrpo.evaluation.pruning import PruningReporter
    from ngrpo.rollout.perturbed import Perturbed
    from ngrpo.rundir import checkpoints
    from ngrpo.rundir.interrupts import INTERRUPTS
    from ngrpo.rundir.progress import Progress
    from ngrpo.rundir.recorder import Recorder
    from ngrpo.training.parts import Parts

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
    policy = _policy(config, model, sampler.strategy, algorithm)
    if run:
        note(config, run, sampler, {"training": trained, **benchmarks})
        checkpoints.refuse_full(run.path, *policy.on_disk(), min(config.checkpoints.keep + 1, config.steps))
    batching = {"n": config.n, "problems": config.problems, "rows_per_batch": config.evaluation.rows_per_batch}
    trackers = _trackers(config, run) if config.get("logger") and run else None
    trial = config.get("sweep", {}).get("trial")
    return Parts(
        policy=policy,
        reference=_reference(config, policy),
        sampler=sampler,
        task=trained,
        evaluation=Evaluation(evaluator, benchmarks, **batching, max_errors=config.grading.max_ungraded_share),
        directory=request.directory,
        labels=request.labels("exploration", "algorithm"),
        progress=Progress(config.steps, quiet=run is None),
        recorder=Recorder(run, trackers) if run else None,
        reporter=PruningReporter(trial) if trial else None,
        matching=_matching(config, run, sampler, model, config.trainer.micro_batch_rows),
        keep=config.checkpoints.keep,
    )


def evaluation(request: "Request", run: RunDirectory) -> tuple["Evaluation", "CausalModel", int]:
    """What evaluate.py samples, the model it samples from, and the RL step that this stands at; notes what is left out."""
    from safetensors.torch import load_file

    from ngrpo.evaluation.benchmarks import Evaluation

    config = request.config
    _limit_threads(config)
    step = read_run(config.run, trust_changed=config.trust_changed).config.get("steps", 0) if config.run else 0
    engine, strategy = _engine(config, config.exploration)
    prompts = _prompts(config)
    benchmarks = {name: prompts.read(benchmark) for name, benchmark in composed.tasks(config).items()}
    model = causal_model(config).to(_device())
    first = next(iter(benchmarks.values()))
    sampler = _sampler(engine, strategy.to(_device()), model, prompts, first, config.max_new_tokens)
    note(config, run, sampler, benchmarks)
    learned = Path(str(config.run), "hf", STRATEGY_FILE)
    if config.run and learned.is_file():
        strategy.load_state_dict(load_file(learned), strict=False)
    if matching := _matching(config, run, sampler, model):
        matching.settle(model)
    batching = {key: config[key] for key in BATCHING}
    return Evaluation(sampler, benchmarks, **batching, max_errors=config.grading.max_ungraded_share), model, step


def diagnosis(
    request: "Request", run: RunDirectory, nodes: Mapping[str, DictConfig]
) -> tuple["Draw", dict[str, "Sampler"], list[int]]:
    """What diagnose.py draws, a sampler for each strategy, all of one model, and the tokens whose neighbors are wanted."""
    from ngrpo.evaluation.diagnosis import Draw, chosen, token_of

    config = request.config
    _limit_threads(config)
    prompts = _prompts(config)
    named = [token_of(prompts.tokenizer, str(text)) for text in config.tokens]
    engine, *strategies = _engine(config, *nodes.values())
    asked = prompts.read(composed.task(config.task))
    model = causal_model(config).to(_device())
    samplers = {
        name: _sampler(engine, strategy.to(_device()), model, prompts, asked, config.max_new_tokens)
        for name, strategy in zip(nodes, strategies, strict=True)
    }
    note(config, run, next(iter(samplers.values())), {asked.name: asked})
    for sampler in samplers.values():
        if matching := _matching(config, run, sampler, model):
            matching.settle(model)
    engine.sync(model, 0, *(sampler.strategy for sampler in samplers.values()))
    problems = chosen(asked, config.problems, config.seed)
    return Draw(model, asked, problems, config.n, config.rows_per_batch, config.seed, run.path), samplers, named


def causal_model(config: DictConfig, lora: DictConfig | None = None) -> "CausalModel":
    """The model, in the precision that the trainer asks for, with adapters where `lora` has a rank."""
    from ngrpo.models.loading import load

    model, trainer = config.model, config.get("trainer") or {}
    return load(
        composed.model_path(config),
        model.dtype,
        trainer.get("precision", "float32"),
        lora=lora,
        recompute=trainer.get("gradient_checkpointing", False),
        trust_remote_code=model.trust_remote_code,
    )


def note(config: DictConfig, run: RunDirectory, sampler: "Sampler", read: Mapping[str, Task]) -> None:
    """Puts in run.json how the model is asked, what was settled about the data, how many prompts are too long, what the
    model's vocabulary was cut from, and the control whose rewards are trained on."""
    if counts := {name: one.left_out for name, one in read.items() if isinstance(one, Subset)}:
        shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
        print(f"note: prompts that are too long for the model are left out: {shown}")
    notes = {name: lines for name, one in read.items() if (lines := getattr(one, "notes", None))}
    facts = {"left_out": counts, "data_notes": notes, "asked": sampler.prompts.tell(sampler.strategy.vocabulary)}
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


def _prompts(config: DictConfig) -> "Prompts":
    """Before the model is loaded, so that what cannot be asked is told before that."""
    from ngrpo.models.loading import load_tokenizer, read_config
    from ngrpo.models.prompting import Prompting, Prompts

    path, trusted = composed.model_path(config), config.model.trust_remote_code
    settings = read_config(path, trusted).to_dict()
    room = (architectures.positions(settings) or 2**31) - config.max_new_tokens
    prompting = Prompting(config.model.prompt, config.model.answer_start, tuple(config.model.stop))
    return Prompts(load_tokenizer(path, trusted), prompting, room, settings["vocab_size"])


def _sampler(
    engine: "Engine",
    strategy: "Exploration",
    model: "CausalModel",
    prompts: "Prompts",
    asked: Task,
    limit: int,
    perturbed: "Perturbed | None" = None,
) -> "Sampler":
    from ngrpo.models.loading import vocabulary
    from ngrpo.rollout.sampling import Sampler

    words = vocabulary(prompts.tokenizer, model, prompts.prompting.answer_start, asked.answer_prefix, prompts.stops)
    with model.gathered():
        strategy.bind(words, model.table.detach())
    return Sampler(engine, strategy, prompts, limit, perturbed)


def _matching(
    config: DictConfig, run: RunDirectory | None, sampler: "Sampler", model: "CausalModel", micro_rows: int = 32
) -> "Matching | None":
    """What sets the temperature of the sampler's strategy, where it is matched to another one."""
    from ngrpo.training.matching import Matching

    if not (matched := sampler.strategy.matched):
        return None
    asked = sampler.prompts.read(_held_out(config, matched.problems))
    its = _sampler(sampler.engine, matched.strategy, model, sampler.prompts, asked, sampler.max_new_tokens)
    rows = config.get("evaluation", config).rows_per_batch
    return Matching(sampler, its, matched.name, asked, config.seed, rows, micro_rows, run)


def _held_out(config: DictConfig, most: int) -> Task:
    """At most so many problems that a value may be found on: of the split `val` of what is trained or asked, where it has
    one, else of its own problems, whose answers nobody looks at."""
    node = composed.plain(config.task if config.get("task") else next(iter(config.benchmark.values())))
    if {"split", "size"} <= node.keys():  # problems that are made as they are asked for
        with suppress(ValueError):
            return composed.task({**node, "split": "val", "size": min(most, node["size"])})
    whole = composed.task(node)
    return Subset(whole, whole.problems[:most])


def _rewarded(config: DictConfig) -> Task:
    """What is trained on, with the rewards that are added to its own."""
    from ngrpo.tasks.rewards import Rewarded

    functions = {str(name): composed.instantiate(node, partial=True) for name, node in config.extra_rewards.items()}
    return Rewarded(composed.task(config.task), functions) if functions else composed.task(config.task)


def _policy(config: DictConfig, model: "CausalModel", strategy: "Exploration", algorithm: "Algorithm") -> "Policy":
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


def _reference(config: DictConfig, policy: "Policy") -> Any:
    from ngrpo.training.reference import Reference

    own = policy.model if policy.model.adapters else None
    return Reference(own or causal_model(config)) if policy.algorithm.needs_reference else None


def _trackers(config: DictConfig, run: RunDirectory) -> "Trackers":
    """What the run tells of itself elsewhere; run.json says where that is."""
    from ngrpo.training.tracking import Trackers

    told = {name: node for name, node in composed.plain(config).items() if name not in ("schema", "hydra")}
    make = functools.partial(composed.instantiate, save_dir=run.path)
    trackers = Trackers({name: functools.partial(make, node) for name, node in told["logger"].items()}, told)
    run.save(trackers=trackers.links)
    return trackers


def _limit_threads(config: DictConfig) -> None:
    """Where nothing is trained: torch's own number of threads, unless one is asked for."""
    import torch

    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
