"""What the README tells a reader to write works when it is written."""

import importlib.util
import re
from pathlib import Path

import torch

from ngrpo.training.replay import replay

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")


def module_of(block: str, folder: Path):
    """The Python block that begins with the comment `# <block>`, as a module."""
    code = re.search(rf"```python\n(# {re.escape(block)}\n.*?)```", README, re.DOTALL)
    assert code, f"the README has no block {block}"
    path = folder / Path(block).name
    path.write_text(code[1], "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_strategy_keeps_the_contract(tmp_path, make_model, make_vocabulary, make_rollouts, ready):
    model = make_model()
    strategy = module_of("ngrpo/exploration/mean_blend.py", tmp_path).MeanBlend(rate=0.5, share=0.2)
    rollouts = make_rollouts(model, ready(strategy, model, make_vocabulary()))
    assert 0.3 < rollouts.steps.explored[rollouts.mask].float().mean() < 0.7
    gap = (replay(model, strategy, rollouts).log_probs - rollouts.log_probs).abs() * rollouts.loss_mask
    assert gap.max() <= 1e-5
    idle = module_of("ngrpo/exploration/mean_blend.py", tmp_path).MeanBlend(rate=0.5, share=0.0)
    still = make_rollouts(model, ready(idle, model, make_vocabulary()))
    assert not torch.equal(still.steps.tokens[:, : rollouts.mask.shape[1]], rollouts.steps.tokens)


def test_the_task_scores_its_own_problems(tmp_path):
    task = module_of("ngrpo/tasks/parity.py", tmp_path).Parity(size=4)
    texts = [f"so </think> {problem.gold}" for problem in task.problems]
    assert [score.outcome for score in task.score(task.problems, texts)] == ["correct"] * 4
    assert task.score(task.problems[:1], ["</think> yes"])[0].reward == 0.0
