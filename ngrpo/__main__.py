"""`ngrpo train`, `ngrpo report` and so on, from anywhere: what `python train.py`, `python report.py` do in a checkout."""

import runpy
import sys

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
    elif name not in COMMANDS:
        print(f"error: {name}: is no command; {USAGE}", file=sys.stderr)
        sys.exit(2)
    else:
        del sys.argv[1]
        runpy.run_module(f"ngrpo.commands.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
