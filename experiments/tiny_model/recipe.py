"""The recipe of the bundled model: a tokenizer of whole words and one supervised stage on a CPU.

python -m experiments.tiny_model.recipe --out ngrpo/models/tiny_qwen2
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from experiments.tiny_model.corpus import write_pair
from ngrpo.tasks.story_math import StoryMath
from ngrpo.tasks.story_text import ANSWER_START, THINK, vocabulary

LEVELS, LEVEL_WEIGHTS = range(1, 9), (1, 2, 3, 4, 3, 3, 2, 3)
PROMPT_WEIGHT = 0.2  # of a prompt token in the loss: stories teach which words are alike
BATCH, LEARNING_RATE, WARMUP = 64, 2e-3, 100
BENCHMARKS = {
    "story_math_easy": ("test", [2], "common"),
    "story_math": ("test", [4], "common"),
    "story_math_ood": ("test", [4], "held_out"),
    "story_math_hard": ("test", [8], "common"),
    "story_math_val": ("val", [4], "common"),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word. The thinking marks are added tokens but not special, so they stay visible when decoded."""
    words = ["<pad>", "<eos>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in (THINK, ANSWER_START)])  # pyright: ignore
    # AutoTokenizer takes its own byte-pair class for every qwen2 model, whatever tokenizer_class says, unless there is
    # an auto_map; the class named here is never loaded (that would need trust_remote_code).
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": [None, "tokenization_words.WordTokenizer"]}
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """About a million parameters; embedding rows are padded to a multiple of 32."""
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="eager",  # pyright: ignore  # on a CPU the fused kernel's backward is slower in bfloat16
    )
    return Qwen2ForCausalLM(config)


def batches(rng: Random, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights), both (B, T) and padded right; a batch has stories of one level, so little is lost."""
    vocab, eos, pad = tokenizer.get_vocab(), tokenizer.eos_token_id, tokenizer.pad_token_id
    while True:
        level = rng.choices(LEVELS, LEVEL_WEIGHTS)[0]
        ids, weights = [], []
        for _ in range(BATCH):
            prompt, answer = (text.split() for text in write_pair(rng, level))
            ids.append([vocab[word] for word in prompt + answer] + [eos])
            weights.append([PROMPT_WEIGHT] * len(prompt) + [1.0] * (len(answer) + 1))
        longest = max(map(len, ids))
        yield (
            torch.tensor([row + [pad] * (longest - len(row)) for row in ids]),
            torch.tensor([row + [0.0] * (longest - len(row)) for row in weights]),
        )


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """The supervised stage, in place: AdamW, warm-up and cosine, bfloat16 where it is fast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, min(WARMUP, steps))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - WARMUP), LEARNING_RATE / 50)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [WARMUP])
    stream, began, tokens = batches(Random(f"corpus {seed}"), tokenizer), time.monotonic(), 0
    model.train()
    for step in range(1, steps + 1):
        ids, weights = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tokens += int((weights > 0).sum())
        if step % 100 == 0 or step == steps:
            print(
                f"step {step}/{steps} loss {loss:.4f} tokens {tokens} seconds {time.monotonic() - began:.0f}",
                flush=True,
            )
    model.eval()


@torch.inference_mode()
def measure(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, task: StoryMath, samples: int) -> dict:
    """Share of right samples (mean@n) and of problems with any (pass@n), at temperature 0.6, top-p 0.95."""
    encoded = tokenizer([problem.prompt for problem in task.problems], padding=True, return_tensors="pt")
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
    output = model.generate(  # pyright: ignore
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=96,
        num_return_sequences=samples,
        **sampling,
    )[:, encoded["input_ids"].shape[1] :]
    completions = tokenizer.batch_decode(output, skip_special_tokens=True)
    problems = [problem for problem in task.problems for _ in range(samples)]
    rewards = torch.tensor([score.reward for score in task.score(problems, completions)]).view(-1, samples)
    lengths = (output != tokenizer.pad_token_id).sum(1).float()
    return {
        f"mean@{samples}": round(rewards.mean().item(), 4),
        f"pass@{samples}": round((rewards.sum(1) > 0).float().mean().item(), 4),
        "mean_tokens": round(lengths.mean().item(), 1),
        "max_tokens": int(lengths.max()),
    }


def make(out: Path, seed: int, steps: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Train and write to `out`, in Hugging Face format. Same seed, machine and threads: the same bits."""
    set_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{len(tokenizer)} words, {model.num_parameters()} parameters")
    train(model, tokenizer, steps, seed)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model and tokenizer to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600, help="batches of the supervised stage")
    parser.add_argument("--samples", type=int, default=32, help="samples per problem in the final evaluation")
    arguments = parser.parse_args()
    model, tokenizer = make(arguments.out, arguments.seed, arguments.steps)
    for name, (split, levels, wording) in BENCHMARKS.items():
        task = StoryMath(split, levels, 48, wording)
        print(name, measure(model, tokenizer, task, arguments.samples), flush=True)


if __name__ == "__main__":
    main()
