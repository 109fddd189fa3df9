"""python experiments/gemma_270m/texts.py > texts.jsonl: what a model reads and may write on word_sums, for the trim."""

import json
from pathlib import Path

import yaml

from ngrpo.tasks.word_sums import SPLITS, WordSums

PART = Path(__file__).parents[2] / "conf" / "task" / "part" / "word_sums.yaml"


def main() -> None:
    settings = yaml.safe_load(PART.read_text("utf-8"))
    del settings["_target_"]
    for split in SPLITS:
        for problem in WordSums(split=split, size=4096, **settings).problems:
            # Sums of any two numbers below a hundred, right or wrong, are read alike: every digit is a token.
            print(json.dumps(f"{problem.prompt} {problem.gold} + {problem.gold} - {problem.gold} = {problem.gold}\n\n"))


if __name__ == "__main__":
    main()
