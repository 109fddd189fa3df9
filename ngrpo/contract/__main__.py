"""python -m ngrpo.contract [exploration=<name>,<name>] [--config-dir <mine>]: a line for each strategy and temperature.

Exit status: 0 where every check holds and every mutation is noticed, 1 where one does not, 2 for wrong words.
"""

import sys

import torch
from omegaconf import DictConfig

from ngrpo import cli
from ngrpo.contract import ROWS, TEMPERATURES, Setting, built, examine, mutations, noticed
from ngrpo.contract.statistics import Finding

SHOWN = 3  # failures of a line


def main(argv: list[str]) -> int:
    """Prints the lines; the exit status."""
    configs, problems = cli.each_strategy("evaluate", argv)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if problems:
        return 2
    torch.set_num_threads(1)  # operations on so few tokens take longer on several
    setting = Setting(ROWS)
    held = [_holds(name, config, setting) for name, config in configs.items()]
    return int(not all(held))


def _holds(name: str, config: DictConfig, setting: Setting) -> bool:
    good = True
    for temperature in TEMPERATURES:
        strategy = built(config, temperature, setting)
        findings = list(examine(strategy, setting, ROWS))
        good &= not any(finding.fails for finding in findings)
        print(f"{name} at temperature {temperature}: {_told(findings)}", flush=True)
    strategy = built(config, 1.0, setting)
    found = {mutation: noticed(strategy, setting, mutant) for mutation, mutant in mutations(strategy, setting).items()}
    missed = [mutation for mutation, finding in found.items() if finding is None]
    told = f"{len(found)} mutations are noticed: {'; '.join(found)}" if found else "it has no mutation to be noticed"
    print(f"{name} tampered with: {f'not noticed: {chr(59).join(missed)}' if missed else told}", flush=True)
    return good and bool(found) and not missed


def _told(findings: list[Finding]) -> str:
    failed = [finding for finding in findings if finding.fails]
    if not failed:
        least = min(findings, key=lambda finding: finding.p)
        return f"{len(findings)} checks hold, the least likely with p = {least.p:.2g} ({least.what})"
    told = "; ".join(f"{f.what}: {f.detail}" for f in failed[:SHOWN])
    return f"{len(failed)} of {len(findings)} checks fail: {told}{'; ...' if len(failed) > SHOWN else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
