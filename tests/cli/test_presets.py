"""Presets under a paper's name are what the paper, or its released configuration, says, and start with nothing less."""

import csv
import json
import re
import shlex
from fnmatch import fnmatch

import configurations
import pytest
import yaml
from omegaconf import OmegaConf
from places import CONF, REPOSITORY

from ngrpo.cli import fit
from ngrpo.cli.command import examine
from ngrpo.models import files
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.rewards import right, well_formed

PLACE = CONF / "experiment"
PRESETS = [
    f"{folder}/{file.stem}" for folder in ("paper", "released") for file in sorted((PLACE / folder).glob("*.yaml"))
]
with open(REPOSITORY / "tests" / "data" / "published_settings.csv", encoding="utf-8", newline="") as table:
    FACTS = list(csv.DictReader(table))
LEAST = {"task.dataset", "prompts_per_step", "group_size", "max_new_tokens", "learning_rate"}
SETTINGS = {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_was_published(name):
    with configurations.composing():
        config = configurations.schema("plan").reference([f"experiment={name}"])
    facts = [fact for fact in FACTS if any(fnmatch(name, pattern) for pattern in fact["experiments"].split())]
    assert {fact["key"] for fact in facts} >= LEAST
    for fact in facts:
        composed, published = OmegaConf.select(config, fact["key"]), yaml.safe_load(fact["value"])
        if isinstance(composed, float):
            assert composed == float(published), fact
        else:
            assert (OmegaConf.to_container(composed) if OmegaConf.is_config(composed) else composed) == published, fact
    assert config.model.path in config.preset.weights and config.task.dataset == config.preset.data


@pytest.mark.parametrize("name", PRESETS)
def test_without_weights_and_data_one_line_says_what_is_missing_and_names_what_runs_here(name, monkeypatch):
    monkeypatch.setattr(files, "cached", lambda *repository: False)
    (line,) = examine("config", [f"experiment={name}"]).problems
    assert line.startswith(f"experiment={name}: the weights of ") and "hf download" in line and "paths.data=" in line
    demo = line.rpartition("; ")[2].split()[0]
    assert examine("config", [demo]).problems == []
    assert examine("plan", [f"experiment={name}", "plan.device=h20-3e"]).problems == []


def test_no_other_model_or_data_is_trained_under_the_name_of_a_paper(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "cached", lambda *repository: True)
    seven = "experiment=paper/n_grpo_7b"
    (line,) = examine("config", [seven, "model=tiny"]).problems
    assert "model.path=ngrpo:tiny is not deepseek-ai/DeepSeek-R1-Distill-Qwen-7B; experiment=method/n_grpo" in line
    (line,) = examine("config", [seven, "task=gsm8k"]).problems
    assert "task=gsm8k is not agentica-org/DeepScaleR-Preview-Dataset" in line
    (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, "hidden_size": 1536}))
    (line,) = examine("config", [seven, f"model.path={tmp_path}"]).problems
    assert f"model.path={tmp_path} is not deepseek-ai" in line
    (line,) = examine("config", [seven, f"model={tmp_path}"]).problems
    assert "model.path=<directory> keeps that" in line


def test_weights_in_a_directory_and_data_in_files_are_what_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "cached", lambda *repository: False)
    monkeypatch.setattr(files, "refusal", lambda *path: None)  # the directory holds no weights
    monkeypatch.setattr(fit, "gpu_refusal", lambda devices: None)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    rows = "".join(json.dumps({"problem": f"What is {at}?", "answer": str(at)}) + "\n" for at in range(64))
    for name in ("deepscaler", "aime24", "aime25", "amc23", "math500"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    given = ["experiment=paper/n_grpo_7b", f"model.path={tmp_path}", f"paths.data={tmp_path}"]
    assert examine("config", given).problems == []
    (tmp_path / "amc23.jsonl").unlink()
    (line,) = examine("config", given).problems
    assert "data sets are not here: math-ai/amc23 (" in line


def test_an_experiment_says_how_it_trains_and_a_smoke_run_is_small_whatever_it_says():
    with configurations.composing():
        schema = configurations.schema("config")
        own, smoke = (schema.reference(["experiment=paper/n_grpo_1_5b", *more]) for more in ((), ("trainer=smoke",)))
    assert (own.trainer.strategy, own.trainer.micro_batch_rows, own.steps) == ("fsdp", 2, 629)
    assert (smoke.steps, smoke.prompts_per_step, smoke.group_size, smoke.n) == (2, 4, 4, 4)


def test_the_commands_of_the_papers_tables_are_accepted():
    """A plan takes the words of train.py."""
    page = (REPOSITORY / "docs" / "reproduce.md").read_text("utf-8")
    lines = dict.fromkeys(words for words in re.findall(r"`((?:-m )?experiment=[^`]+)`", page) if "..." not in words)
    assert len(lines) > 12
    for line in lines:
        assert examine("plan", [*shlex.split(line), "plan.device=h20-3e"]).problems == [], line


def test_the_rewards_of_soft_tokens_are_100_10_and_0():
    with configurations.composing():
        extra = configurations.schema("config").reference(["experiment=paper/stht"]).extra_rewards
    problem = Problem("p", "?", "4", True, "?")

    def reward(completion: str, outcome: str) -> float:
        score = Score(float(outcome == "correct"), outcome, None, "")
        start = "The final answer is:"
        form = well_formed(problem, completion, score, weight=extra.boxed.weight, answer_start=start)
        return score.reward + form + right(problem, completion, score, weight=extra.right.weight)

    assert reward("Two and two. The final answer is: \\boxed{4}", "correct") == 100
    assert reward("Two and two. The final answer is: \\boxed{5}", "wrong") == 10
    assert reward("Two and two", "unparsed") == 0
