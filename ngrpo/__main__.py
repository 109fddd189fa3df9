"""`ngrpo train`, `ngrpo report` and so on, from anywhere: what `python train.py`, `python report.py` do in a checkout."""

import os
import runpy
import sys
from importlib import import_module

from ngrpo import __version__
from ngrpo.rundir import interrupts

COMMANDS = ("train", "evaluate", "diagnose", "report", "audit", "plan")
USAGE = f"ngrpo <command> <key>=<value> ...; the commands are {', '.join(COMMANDS)}; ngrpo train --help lists the keys"


def main() -> None:
    """Runs the command that `sys.argv` names, as `python -m ngrpo.commands.<name>`: so may processes that it starts."""
    interrupts.begin()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"ngrpo {__version__}")
    elif name in ("-h", "--help"):
        print(USAGE)
    elif name in ("-sc", "--shell-completion"):
        _complete()
    elif name not in COMMANDS:
        print(f"error: {name}: is no command; {USAGE}", file=sys.stderr)
        sys.exit(2)
    else:
        del sys.argv[1]
        runpy.run_module(f"ngrpo.commands.{name}", run_name="__main__", alter_sys=True)


def _complete() -> None:
    """What a shell asks for: Hydra's function for it, or the words that may follow those of COMP_LINE."""
    line = os.environ.get("COMP_LINE", "")
    _, name, *rest = (f"{line} ".split(" ", 2)) if line else ("", COMMANDS[0], "")
    if name not in COMMANDS:
        print(" ".join(COMMANDS))
        return
    from ngrpo import cli

    os.environ["COMP_LINE"] = (
        f"ngrpo {''.join(rest).strip(' ')}"  # of `ngrpo train x` Hydra knows the words of `ngrpo x`
    )
    config = "config" if name == "train" else name
    cli.prepare(config)
    cli.run(import_module(f"ngrpo.commands.{name}").main, config)


if __name__ == "__main__":
    main()
