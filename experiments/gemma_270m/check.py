"""python -m experiments.gemma_270m.check <whole model> <model that takes the steps>: what is ours against transformers.

Greedy answers of 64 tokens to 8 prompts must be those of transformers; in two RL steps under every strategy of
conf/exploration, replayed log-probabilities must be those of the rollout: to 1e-4 for token and Gumbel terms, to 1e-5 times
the root of the width for densities. Writes check.csv beside this file, one row per strategy and kind of term; gap: the mean
over its decode steps, as the metric engine_gap, and the largest. Exit status 1 where something is not so.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.cli.command import CONF
from ngrpo.cli.identity import register_resolvers
from ngrpo.composed import instantiate
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, load_tokenizer, vocabulary
from ngrpo.models.prompting import PLAIN
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.records import DIRICHLET, GAUSSIAN, GUMBEL, TOKEN, Vocabulary
from ngrpo.rollout.sampling import padded
from ngrpo.training.replay import replay

HERE = Path(__file__).parent
TOKENS, ROWS, ANSWER = 64, 4, 14  # of a greedy answer; of a prompt in an RL step; tokens of such an answer
NAMES = {TOKEN: "token", GUMBEL: "gumbel", GAUSSIAN: "gaussian", DIRICHLET: "dirichlet"}
TEXTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a child who",
    "def fibonacci(n):\n",
    "The three primary colors are red,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Ein Hund und eine Katze",
    "1, 2, 3, 4, 5,",
]


def greedy_differences(path: str) -> int:
    """How many of the prompts are answered otherwise than by transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), load(path)
    prompts, mask = padded([torch.tensor(ids).numpy() for ids in PLAIN.encode(load_tokenizer(path), TEXTS)], 0)
    strategy = TokenSampling(1e-6)
    strategy.bind(vocabulary(tokenizer, model, None, ""), model.table.detach())
    ours = generate(model, strategy, prompts, mask, row_keys([(row,) for row in range(len(prompts))]), TOKENS)
    stock: Any = AutoModelForCausalLM.from_pretrained(path).eval()
    asked: dict[str, Any] = {"do_sample": False, "max_new_tokens": TOKENS}
    theirs = [
        stock.generate(row[kept][None], **asked)[0, kept.sum() :] for row, kept in zip(prompts, mask, strict=True)
    ]
    pairs = zip(ours.steps.tokens, ours.lengths.tolist(), theirs, strict=True)
    return sum(row[:length].tolist() != text.tolist() for row, length, text in pairs)


def strategies() -> Iterator[tuple[str, Any]]:
    """Name and node of every strategy, as its file builds it."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in sorted(path.stem for path in (CONF / "exploration").glob("*.yaml")):
            yield name, compose("config", overrides=["experiment=gemma_270m", "model.path=.", f"exploration={name}"])


def gaps(
    model: CausalModel, words: Vocabulary, config: Any, prompts: torch.Tensor, mask: torch.Tensor
) -> Iterator[Any]:
    """(RL step, role, gaps) of the strategy in two steps of AdamW that make half of the answers likelier."""
    strategy = instantiate(config.exploration)
    strategy.bind(words, model.table.detach())
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *strategy.parameters()], lr=config.learning_rate, weight_decay=0
    )
    for step in (1, 2):
        strategy.prepare(model.table.detach(), step - 1, model.head.detach())
        keys = row_keys([(step, row) for row in range(ROWS * len(prompts))])
        rollouts = generate(model, strategy, prompts, mask, keys, ANSWER)
        found = replay(model, strategy, rollouts).log_probs
        gap = (found.detach() - rollouts.log_probs).abs()
        for role in rollouts.steps.role[rollouts.loss_mask].unique().tolist():
            yield step, role, gap[rollouts.loss_mask & (rollouts.steps.role == role)]
        signs = torch.tensor([1.0, -1.0]).repeat(len(found) // 2)[:, None]
        optimizer.zero_grad()
        (-(found * signs * rollouts.loss_mask).sum() / rollouts.loss_mask.sum()).backward()
        optimizer.step()


def main(whole: str, trained: str) -> int:
    model, tokenizer = load(trained), load_tokenizer(trained)
    rows, failed = [], 0
    for name, config in strategies():
        words = vocabulary(tokenizer, model, None, "", list(config.model.stop))
        texts = [problem.prompt for problem in instantiate(config.task).problems[:2]]
        prompts, mask = padded([torch.tensor(ids).numpy() for ids in PLAIN.encode(tokenizer, texts)], 0)
        for step, role, gap in gaps(model, words, config, prompts, mask):
            limit = 1e-4 if role in (TOKEN, GUMBEL) else 1e-5 * model.table.shape[1] ** 0.5
            failed += gap.mean().item() > limit
            figures = [f"{value:.2g}" for value in (gap.mean().item(), gap.max().item(), limit)]
            rows.append([name, step, NAMES[role], len(gap), *figures])
            print(*rows[-1], flush=True)
    with open(HERE / "check.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["strategy", "step", "term", "decode_steps", "gap", "largest", "limit"], *rows]
        )
    different = greedy_differences(whole)
    print(f"{different} of {len(TEXTS)} greedy answers differ; {failed} of {len(rows)} gaps are too large")
    return int(bool(different or failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
