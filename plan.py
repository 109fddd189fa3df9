"""What a run would need of memory and disk, and whether this machine has it; no weights and no data are read.

python plan.py exploration=neighbor_mix k=5
python plan.py experiment=paper/n_grpo model=deepseek_r1_distill_qwen_1_5b max_new_tokens=8192
python plan.py model=deepseek_r1_distill_qwen_7b trainer=gpu trainer.devices=8 plan.device=a100-80gb max_new_tokens=8192

Exit status: 0 it fits, 1 it does not, 2 the words are wrong.
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from omegaconf import DictConfig

from ngrpo import cli


def main(config: DictConfig) -> None:
    """Compose, count, print; raises DoesNotFit."""
    from ngrpo import plans
    from ngrpo.models import devices, sizes

    needed, name, count = plans.needs(config), config.plan.device, config.trainer.devices
    if name is None:
        print(sizes.describe(needed, sizes.available()))
        sizes.check(needed, sizes.available())
        return
    device, architecture = devices.DEVICES[name], sizes.architecture(config.model.path)
    print(sizes.describe(needed, [(f"{count} x {name}", device.free)]))
    work = plans.work(config)
    tokens = work.answer_tokens * needed.sizes.rows * count
    print(
        devices.describe(name, count, work, devices.time(architecture, needed, work, device), config.plan.runs, tokens)
    )
    if needed.peak > device.free:
        overrides, smaller = devices.fitting(architecture, needed.sizes, device)
        fits = smaller.peak <= device.free
        told = f"a process needs {needed.peak / sizes.GIB:.2f} GiB, one {name} has {device.free / sizes.GIB:.2f} GiB"
        fix = "what makes it fit" if fits else "not even this makes it fit"
        raise sizes.DoesNotFit(f"{told}; {fix}: {' '.join(overrides)} ({smaller.peak / sizes.GIB:.2f} GiB)")


if __name__ == "__main__":
    cli.prepare("plan")
    cli.run(main, "plan")
