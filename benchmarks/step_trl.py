"""The other side of the comparison of whole steps: TRL's GRPOTrainer on the same task, its steps waiting for their turn.

The task, its grader and the lengths of answers are those of step_ngrpo. bfloat16 and gradient checkpointing, which TRL
turns on by default, would slow it down here and are off, as in ours.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2ForCausalLM, StoppingCriteriaList, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.arms import Lengths
from benchmarks.turns import Turn, lengths_of, parse
from ngrpo.models.loading import load_tokenizer
from ngrpo.tasks.story_math import StoryMath

LEVELS, SIZE = [4], 4096  # conf/task/story_math.yaml


class Timed(GRPOTrainer):
    """Records the seconds and tokens of the last rollout."""

    rollout, tokens = 0.0, 0

    def _generate_single_turn(self, *arguments: Any, **more: Any) -> Any:
        start = perf_counter()
        generated = super()._generate_single_turn(*arguments, **more)
        self.rollout, self.tokens = perf_counter() - start, sum(map(len, generated[0]))
        return generated


class Turns(TrainerCallback):
    """A step lasts from its beginning to the line that it logs."""

    def __init__(self, turn: Turn):
        self.turn, self.begun = turn, False
        self.trainer: Timed | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.turn.wait()
        self.begun = True

    def on_log(self, *_: Any, **__: Any) -> None:
        if self.begun and self.trainer is not None:
            self.turn.done(tokens=self.trainer.tokens, phases={"rollout": self.trainer.rollout})
        self.begun = False


def settings(options: Namespace) -> GRPOConfig:
    """The same algorithm as conf/config.yaml with algorithm=grpo: no KL, one update per rollout, a constant rate."""
    rows = options.prompts * options.group
    return GRPOConfig(
        output_dir=str(options.place / "trl"),
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=rows // options.rows,
        num_generations=options.group,
        max_completion_length=options.limit,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        loss_type="grpo",
        learning_rate=3e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=1_000_000,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def reward(task: StoryMath, imposed: bool) -> Callable[..., list[float | None]]:
    """The task's grader; for random texts, which are all wrong, the parity of their length stands in for a reward."""

    def graded(prompts: list[str], completions: list[str], number: list[int], **_: Any) -> list[float | None]:
        scores = task.score([task.problems[n] for n in number], completions)
        return [float(len(text) % 2) if imposed else s.reward for s, text in zip(scores, completions, strict=True)]

    return graded


class EndingModel(Qwen2ForCausalLM):
    """Rows of every `generate` end after `lengths` tokens (at least two), where these are given: one less, and a stop, which
    is also the padding.

    The longest rows end the loop, so no padding follows them: they have their last token of their own.
    """

    lengths: Sequence[int] | None = None

    def generate(self, **inputs: Any) -> Any:
        if self.lengths is not None:
            lengths = torch.tensor(self.lengths)
            stop = Lengths(lengths - (lengths < lengths.max()).long(), inputs["input_ids"].shape[1])
            inputs["stopping_criteria"] = StoppingCriteriaList([stop])
        return super().generate(**inputs)  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    """Trains until no other step is requested."""
    options, turn = parse(__doc__), Turn()
    torch.set_num_threads(options.threads)
    lengths, task = lengths_of(options), StoryMath("train", LEVELS, SIZE)
    path = options.model
    model = EndingModel.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    model.lengths = lengths
    tokenizer = load_tokenizer(path)
    if lengths is not None:
        tokenizer.pad_token = tokenizer.eos_token
    problems = {"prompt": [p.prompt for p in task.problems], "number": list(range(SIZE))}
    turns = Turns(turn)
    trainer = Timed(
        model,
        reward_funcs=reward(task, lengths is not None),
        args=settings(options),
        train_dataset=Dataset.from_dict(problems),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    turns.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
