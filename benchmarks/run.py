"""Speed and memory, part by part, each beside what it is compared with in the same run.

    python -m benchmarks.run [--part NAME ...] [--quick] [--threads N] [--repeats N] [--limit N] [--out DIR]

It measures and knows no pass or fail; README.md beside it tells how to read the figures. Each part that is done is written
at once, so an interrupted run is continued by naming the parts that are missing.
"""

import argparse
import gc
import json
import os
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import engines, generation, growth, memory, methods, models, plan, roofline, step, strategies
from benchmarks.measuring import load
from benchmarks.options import Options
from benchmarks.reporting import folder_of, heading, write, write_summary
from ngrpo.rundir.provenance import git_commit, hardware, package_versions

RESULTS = Path(__file__).resolve().parent / "results"
PARTS: dict[str, ModuleType] = {
    "step": step,
    "generation": generation,
    "strategies": strategies,
    "methods": methods,
    "memory": memory,
    "plan": plan,
    "growth": growth,
    "roofline": roofline,
    "engines": engines,
}
BY_DEFAULT = [part for part in PARTS if part not in ("roofline", "engines")]  # for a GPU, and for .venv-vllm


def parse() -> argparse.Namespace:
    """Options; --quick only shows that everything runs, so it writes nothing unless told where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=BY_DEFAULT, help="default: all but roofline and engines"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    parser.add_argument("--repeats", type=int, help="pairs of timings per comparison (default: 9, with --quick 2)")
    parser.add_argument("--limit", type=int, help="max_new_tokens (default: 96, with --quick 32)")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda, for generation, strategies, growth, roofline"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights there")
    parser.add_argument("--model", choices=models.NAMES, help="the larger one (default: 50m; roofline on a GPU: 1.5b)")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; not a measurement")
    parser.add_argument("--out", type=Path, help="where to write (default: benchmarks/results; with --quick nowhere)")
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (2 if arguments.quick else 9)
    arguments.limit = arguments.limit or (32 if arguments.quick else 96)
    arguments.out = arguments.out or (None if arguments.quick else RESULTS)
    return arguments


def measure(part: str, options: Options) -> tuple[dict[str, Any], Any]:
    """The context of one part and its measurements."""
    began, before, start = datetime.now(UTC).isoformat(timespec="seconds"), load(), perf_counter()
    measured = PARTS[part].measure(options)
    versions = package_versions()
    with suppress(PackageNotFoundError):  # as where vLLM is
        versions["trl"] = version("trl")
    gpus = [torch.cuda.get_device_name()] if options.device != "cpu" else []
    return {
        "command": shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]]),
        "date": began,
        "minutes": (perf_counter() - start) / 60,
        "threads": options.threads,
        "repeats": options.repeats,
        "device": options.device,
        "load_before": before,
        "load_after": load(),
        "versions": versions,
        "git_commit": git_commit(),
        "hardware": hardware() | {"gpus": gpus},
    }, measured


def summarize(folder: Path) -> Path:
    """The tables and pictures of every part that has been measured there."""
    sections = {}
    for part, module in PARTS.items():
        path = folder / f"{part}.json"
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            pictures = module.pictures(content["measured"], folder) if hasattr(module, "pictures") else []
            sections[module.TITLE] = (heading(content["context"]), module.tables(content["measured"]), pictures)
    return write_summary(sections, folder)


def main() -> None:
    """Measure, print, write, one part after the other."""
    arguments = parse()
    options = Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    gc.freeze()  # collecting before every timing otherwise takes longer than what is timed: libraries have many objects
    for part in arguments.part:
        print(f"{part} ...", file=sys.stderr)
        context, measured = measure(part, options)
        for table in PARTS[part].tables(measured):
            print(table.markdown(), flush=True)
        if arguments.out:
            folder = folder_of(context, arguments.out)
            write(part, context, measured, folder)
            print(summarize(folder), file=sys.stderr)


if __name__ == "__main__":
    main()
