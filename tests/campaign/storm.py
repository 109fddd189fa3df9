"""A campaign against one small run: killed at random, stopped by signals at named points, left without disk at others.

    python -m tests.campaign.storm kills=200 signals=64 full=23

Whatever happens, a run must say in one line why it ended, leave its status in run.json, and come out of the same command
again byte for byte as the run that nothing happened to. Outcomes are kept in outputs/campaign/outcomes.jsonl, so the same
command goes on where it was cut off; docs/reliability.md gets the counts.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import warm  # noqa: E402 - a helper of the tests

from tests.campaign import points  # noqa: E402

OUT, PAGE = ROOT / "outputs" / "campaign", ROOT / "docs" / "reliability.md"
WORDS = [
    "trainer=smoke", "trainer.threads=1", "benchmark=story_math", "exploration=neighbor_mix", "mix_rate=0.3", "steps=4",
    "max_new_tokens=20", "eval_every=2", "evaluation.rows_per_batch=8", "exploration.refresh_every=2",
]  # fmt: skip
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
TOLD = {
    "kills": "SIGKILL at random moments",
    "signals": "a signal at a named point",
    "full": "no room from a named point on",
}
TABLE = re.compile(r"(?<=<!-- campaign -->\n).*?(?=<!-- /campaign -->)", re.DOTALL)
Case = tuple[str, str, str, int]  # kind, action, point, count


def child(action: str, name: str, count: int, words: list[str], log: Path) -> None:
    """A run with a point, in a process that has imported everything."""
    points.install(action, name, count, points.root_of(words))
    warm.command("train.py", words, log)


def run(place: Path, case: Case | None = None, seconds: float | None = None) -> tuple[int | None, str]:
    """(exit status, what it printed) of the run in `place`, killed after so many seconds where they are given."""
    words, log = [*WORDS, f"hydra.run.dir={place / 'run'}"], place / "log"
    place.mkdir(parents=True, exist_ok=True)
    if case and case[2].startswith("import"):
        command = [sys.executable, "-m", "tests.campaign.points", *map(str, case[1:]), "train.py", *words]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        return done.returncode, done.stdout + done.stderr
    arguments = (case[1], case[2], case[3], words, log) if case else ("note", os.devnull, 0, words, log)
    process = warm.server.Process(target=child, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, log.read_text(errors="replace")


def digests(place: Path) -> dict[str, str]:
    """Of every file that must not depend on what happened to the run."""
    run = place / "run"
    files = [run / "metrics.csv", run / "results.json", *run.glob("hf/*"), *run.glob("samples/**/*.parquet")]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def status(place: Path) -> str | None:
    path = place / "run" / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def wrong(case: Case, place: Path, code: int | None, text: str) -> str | None:
    """What a run that was stopped should not have done."""
    kind, action, _, _ = case
    expected = 128 + Signals[action] if kind == "signals" else 1
    after = ("interrupted", None) if kind == "signals" else ("failed", None)
    if code == 0 and status(place) == "finished":
        return None  # the last points come after the last moment at which it would stop
    if code != expected:
        return f"exit status {code}, expected {expected}: {text[-300:]}"
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text or len(lines) != 1:
        return f"{len(lines)} lines of error: {text[-600:]}"
    return None if status(place) in after else f"status {status(place)}: {lines[0]}"


def outcome(case: Case, whole: dict[str, str], duration: float) -> str | None:
    """Runs a case to its end; what was wrong, None where nothing was."""
    kind, _, name, count = case
    place = OUT / "case" / "-".join((kind, re.sub(r"\W+", "_", name), str(count), case[1]))
    shutil.rmtree(place, ignore_errors=True)
    if kind == "kills":
        run(place, seconds=duration * random.Random(count).uniform(0.05, 1.0))
        found = None
    else:
        found = wrong(case, place, *run(place, case))
    code, text = run(place)
    if not found and (code, status(place)) != (0, "finished"):
        found = f"the same command ended with {code}: {text[-600:]}"
    if not found and digests(place) != whole:
        found = f"other files: {sorted(dict(digests(place).items() ^ whole.items()))}"
    if not found:
        shutil.rmtree(place)
    return found


def spread(cases: list[Case], most: int) -> list[Case]:
    """So many of them, evenly."""
    return [cases[at * len(cases) // most] for at in range(most)] if most < len(cases) else cases


def cases(noted: Counter[str], asked: dict[str, int]) -> Iterator[Case]:
    """All that is done to the run: of points that come more than once, the first time and the last."""
    times = [(name, count) for name, most in noted.items() for count in sorted({1, most})]
    signals = [("signals", action, *at) for action in SIGNALS for at in times]
    random.Random(0).shuffle(signals)
    yield from spread(signals, asked["signals"])
    files = [("full", "full", *at) for at in times if at[0].startswith(("open", "os.mkdir"))]
    yield from spread(files, asked["full"])
    yield from (("kills", "SIGKILL", "", count) for count in range(asked["kills"]))


def write_page(outcomes: list[dict[str, Any]]) -> None:
    rows = ["| what happened | times | in order | otherwise |", "|---|---|---|---|"]
    for kind, told in TOLD.items():
        good = [one["wrong"] is None for one in outcomes if one["case"][0] == kind]
        rows.append(f"| {told} | {len(good)} | {sum(good)} | {len(good) - sum(good)} |")
    page = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub("\n" + "\n".join(rows) + "\n\n", page), "utf-8")


def main(argv: list[str]) -> int:
    asked = {"kills": 200, "signals": 64, "full": 23} | {k: int(v) for k, v in (word.split("=") for word in argv)}
    names, log = OUT / "points", OUT / "outcomes.jsonl"
    whole = OUT / "whole"
    if not names.exists() or status(whole) != "finished":
        shutil.rmtree(OUT, ignore_errors=True)
        run(whole)  # which also warms the server, so that the next measures a run and not an import
        shutil.rmtree(whole)
        began = time.monotonic()
        run(whole)
        (OUT / "seconds").write_text(str(time.monotonic() - began))
        run(OUT / "noted", ("", "note", str(names), 0))
    noted = Counter(names.read_text().splitlines())
    noted.update({f"import {name}": 1 for name in ("hydra", "omegaconf", "torch", "transformers", "rich", "lightning")})
    expected, duration = digests(whole), float((OUT / "seconds").read_text())
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for case in cases(noted, asked):
        if list(case) not in [one["case"] for one in done]:
            done.append({"case": list(case), "wrong": outcome(case, expected, duration)})
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{len(done)} {' '.join(map(str, case))}: {done[-1]['wrong'] or 'in order'}", flush=True)
    write_page(done)
    return int(any(one["wrong"] for one in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
