"""What a run would need of memory and disk, and whether this machine has it; no weights and no data are read."""

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
        overrides, smaller = devices.fitting(architecture, needed.sizes, device, count)
        fits = smaller.peak <= device.free
        told = f"a process needs {needed.peak / sizes.GIB:.2f} GiB, one {name} has {device.free / sizes.GIB:.2f} GiB"
        fix = "what makes it fit" if fits else "not even this makes it fit"
        raise sizes.DoesNotFit(f"{told}; {fix}: {' '.join(overrides)} ({smaller.peak / sizes.GIB:.2f} GiB)")


if __name__ == "__main__":
    cli.prepare("plan")
    cli.run(main, "plan")
