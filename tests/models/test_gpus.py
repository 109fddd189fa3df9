"""Plans for devices that are not here: hours by hand, what makes a run fit, and the words that say so."""

import subprocess
from dataclasses import replace

import pytest
import warm
from transformers import Qwen2Config

from ngrpo.models import sizes
from ngrpo.models.devices import DEVICES, MATMUL, READING, Device, Work, fitting, time
from ngrpo.models.sizes import Sizes, architecture, needs

SMALL = Qwen2Config(
    vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=False,
)  # fmt: skip
ROWS, PROMPTS, PROMPT, ANSWER, LONGEST = 12, 3, 10, 20, 50


def test_an_rl_step_takes_what_the_stated_model_says():
    """Counted again, layer by layer, in operations of one multiplication and one addition each."""
    given = Sizes(rows=ROWS, prompts=PROMPTS, prompt_tokens=PROMPT, new_tokens=LONGEST, micro_rows=4, recompute=True)
    device = Device(memory=1, arithmetic=1e-3, bandwidth=1e-6)
    found = time(SMALL, needs(SMALL, given), Work(7, ANSWER, 5, 1, 2), device)
    projections = (
        8 * 8 + 2 * (8 * 4) + 8 * 8 + 8 + 2 * 4
    )  # queries, keys, values, output, and the biases of the first three
    layer = projections + 3 * 8 * 16 + 2 * 8  # and an MLP, and two norms
    weights = 2 * layer + 8 + 100 * 8  # and the last norm and the head
    pairs = PROMPTS * PROMPT * PROMPT / 2 + ROWS * ANSWER * (PROMPT + ANSWER / 2)
    attention = (
        2 * 2 * 2 * 8 * pairs
    )  # a multiplication and an addition, of keys and of values, in two layers of width 8
    forward = 2 * weights * (PROMPTS * PROMPT + ROWS * ANSWER) + attention
    assert found.rollout_operations == pytest.approx(forward, rel=1e-9)
    assert found.update_operations == pytest.approx((1 + 2 + 1 + 2) * forward, rel=1e-9)
    assert found.update_seconds == pytest.approx(6 * forward / (MATMUL * 1e9), rel=1e-9)
    steps = 3 * LONGEST  # 12 rows in three waves of at most 5
    running = ROWS * ANSWER / steps
    read = (weights + 100 * 8) * 4 + running * (PROMPT + ANSWER / 2) * 2 * 2 * 4 * 4
    prefill = 2 * weights * PROMPTS * PROMPT / (MATMUL * 1e9)
    assert found.rollout_seconds == pytest.approx(steps * read / (READING * 1e6) + prefill, rel=1e-9)


@pytest.mark.parametrize("name", DEVICES)
def test_a_faster_device_is_not_slower_and_a_larger_one_fits_what_a_smaller_one_fits(name):
    config, work = architecture("Qwen/Qwen3-1.7B-Base"), Work(100, 2000, 256, 1, 1)
    plan = needs(config, Sizes(64, 16, 1024, 4096, 4, precision="bfloat16", recompute=True, device="cuda"))
    own = DEVICES[name]
    seconds = time(config, plan, work, own).seconds
    for other in (replace(own, arithmetic=2 * own.arithmetic), replace(own, bandwidth=2 * own.bandwidth)):
        assert 0.5 * seconds <= time(config, plan, work, other).seconds < seconds
    assert own.free < replace(own, memory=own.memory + 1).free


def test_what_makes_a_run_fit_does_and_nothing_of_it_is_idle():
    config = architecture("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    given = Sizes(256, 64, 1024, 8192, 8, precision="bfloat16", device="cuda")
    overrides, plan = fitting(config, given, DEVICES["a100-80gb"])
    assert plan.peak <= DEVICES["a100-80gb"].free < needs(config, given).peak
    assert overrides[0] == "trainer.gradient_checkpointing=true" and len(overrides) == len(set(overrides))
    assert fitting(config, given, Device(4096, 1, 1)) == ([], needs(config, given))


@pytest.mark.parametrize(("path", "device", "devices", "parts"), [
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "a100-80gb", 8, 8),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "rtx4090", 1, 32),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "rtx4090", 1, 4),
])  # fmt: skip
def test_replicas_that_do_not_fit_do_in_parts_over_as_few_devices_as_it_takes(path, device, devices, parts):
    """Whole groups stay on a device, and a number of devices that is milder would not do."""
    config, own = architecture(path), DEVICES[device]
    share, common = 64 // devices, {"precision": "bfloat16", "copies": 1, "recompute": True, "device": "cuda"}
    given = Sizes(4 * share, share, 4096, 8192, 2, replicas=devices > 1, update_rows=4 * share, **common)
    overrides, plan = fitting(config, given, own, devices)
    assert f"trainer=fsdp trainer.devices={parts}" in overrides
    assert plan.peak <= own.free and plan.sizes.prompts * parts == 64 and plan.sizes.rows == 4 * plan.sizes.prompts
    if parts > devices:
        fewer = replace(plan.sizes, ranks=parts // 2, prompts=2 * plan.sizes.prompts, rows=2 * plan.sizes.rows)
        assert needs(config, fewer).peak > own.free


def test_adapters_come_with_weights_that_may_be_in_bfloat16():
    """Weights that learn swallow small updates in it, and are refused."""
    config = architecture("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    overrides, plan = fitting(config, Sizes(8, 1, 512, 512, 1, recompute=True, device="cuda"), DEVICES["rtx4090"])
    assert plan.peak <= DEVICES["rtx4090"].free and "model.lora.r=16 model.dtype=bfloat16" in overrides


def test_an_optimizer_on_a_gpu_has_one_more_copy_of_what_it_trains():
    """torch's AdamW takes the root of all second moments at once there."""
    config = architecture("Qwen/Qwen3-1.7B-Base")
    plan = needs(config, Sizes(8, 2, 20, 30, 4, device="cuda"))
    assert plan.step["temporaries"] == 4 * plan.trained > needs(config, Sizes(8, 2, 20, 30, 4)).step["temporaries"]


def plan_of(*overrides: str) -> subprocess.CompletedProcess[str]:
    return warm.run("plan.py", *overrides)


def test_a_plan_for_a_device_says_whether_it_fits_how_long_it_takes_and_what_helps():
    seven = ("model=deepseek_r1_distill_qwen_7b", "trainer=gpu", "max_new_tokens=8192")
    small = plan_of("trainer=gpu", "trainer.devices=8", "plan.device=b200", "plan.runs=3")
    assert small.returncode == 0 and "8 x b200" in small.stdout and "enough" in small.stdout and not small.stderr
    assert "GPU-hours" in small.stdout and "3 runs" in small.stdout
    large = plan_of(*seven, "plan.device=rtx4090")
    (line,) = large.stderr.splitlines()
    assert large.returncode == 1 and "trainer.gradient_checkpointing=true" in line and "one rtx4090 has" in line
    wrong = plan_of("plan.device=a10")
    assert wrong.returncode == 2 and "plan.device=a10: must be one of rtx4090" in wrong.stderr


def test_the_paper_s_7b_run_fits_eight_a100_in_parts_and_no_rtx4090():
    eight = plan_of("experiment=paper/n_grpo_7b", "trainer=fsdp", "trainer.devices=8", "plan.device=a100-80gb")
    assert eight.returncode == 0 and "8 x a100-80gb" in eight.stdout and "629 RL steps" in eight.stdout
    assert "bfloat16 copies" in eight.stdout  # the planned device's matmuls, not this machine's
    one = plan_of("experiment=paper/n_grpo_7b", "trainer=gpu", "trainer.devices=1", "plan.device=rtx4090")
    (line,) = one.stderr.splitlines()
    assert one.returncode == 1 and "trainer=fsdp trainer.devices=" in line and "what makes it fit" in line


def test_nothing_is_asked_of_this_machine(monkeypatch):
    monkeypatch.setattr(sizes, "available", lambda: pytest.fail("this machine was asked"))
    config = architecture("Qwen/Qwen2.5-Math-7B")
    assert fitting(config, Sizes(8, 2, 100, 100, 1, device="cuda"), DEVICES["b200"])[1].peak > 0
