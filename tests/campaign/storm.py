"""A campaign against small runs: killed at random under every method, stopped by signals at named points, left without disk at
others, every one of their files flipped, cut, emptied and taken away, and two processes that train together signalled.

    python -m tests.campaign.storm kills=200 signals=64 full=23 damage=1000 ranks=90 sharded=90

Whatever happens, a run must say in one line why it ended, leave its status in run.json, and come out of the same command
again byte for byte as the run that nothing happened to; where a file was spoilt that cannot be made again, it must name that
file and go on only when told to. Outcomes are kept in outputs/campaign/outcomes.jsonl, so the same
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
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import warm  # noqa: E402 - a helper of the tests

from tests.campaign import points  # noqa: E402

OUT, PAGE = ROOT / "outputs" / "campaign", ROOT / "docs" / "reliability.md"
WORDS = [
    "trainer=smoke", "trainer.threads=1", "benchmark=story_math", "steps=4", "max_new_tokens=20", "eval_every=2",
    "evaluation.rows_per_batch=8", "checkpoint_every=2",
]  # fmt: skip
TWO = {kind: f"trainer.strategy={how} trainer.devices=2" for kind, how in {"ranks": "ddp", "sharded": "fsdp"}.items()}
METHOD = "exploration=neighbor_mix mix_rate=0.3 exploration.refresh_every=2"  # of all but the kills
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
TOLD = {
    "kills": "SIGKILL at random moments",
    "signals": "a signal at a named point",
    "full": "no room from a named point on",
    "ranks": "a signal at a random moment to one of two ranks or to both",
    "sharded": "the same, each with a part of the weights",
    "damage": "a file flipped in its middle, cut in half, emptied or gone",
}
TABLE = re.compile(r"(?<=<!-- campaign -->\n).*?(?=<!-- /campaign -->)", re.DOTALL)
SPOIL = {
    "flip": lambda content: bytes(byte ^ (at == len(content) // 2) for at, byte in enumerate(content)),
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}
NOT_READ = (".hydra", ".lock")  # of a run directory, by a run that goes on
Case = tuple[
    str, str, str, int
]  # kind, action, point (of kills the method, of ranks who, of damage `<state>:<file>`), count


def child(action: str, name: str, count: int, words: list[str], log: Path) -> None:
    """A run with a point, in a process that has imported everything."""
    points.install(action, name, count, points.root_of(words))
    warm.command("train.py", words, log)


def run(
    place: Path, case: Case | None = None, seconds: float | None = None, method: str = METHOD, *more: str
) -> tuple[int | None, str]:
    """(exit status, what it printed) of the run in `place`, killed after so many seconds where they are given."""
    words, log = [*WORDS, *method.split(), *more, f"hydra.run.dir={place / 'run'}"], place / "log"
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
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files) if f.exists()}


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


def whole(method: str = METHOD) -> tuple[Path, float]:
    """The run that nothing happens to, and the seconds that it takes."""
    place = OUT / "whole" / (re.sub(r"\W+", "_", method))
    if status(place) != "finished" or not (place / "seconds").exists():
        shutil.rmtree(place, ignore_errors=True)
        began = time.monotonic()
        ended(together(place, method), place) if method.endswith(tuple(TWO.values())) else run(place, method=method)
        (place / "seconds").write_text(str(time.monotonic() - began))
    return place, float((place / "seconds").read_text())


def begun() -> Path:
    """A run that was stopped after RL step 3 of 4, beyond its checkpoint of step 2."""
    place = OUT / "begun"
    if status(place) != "running":
        shutil.rmtree(place, ignore_errors=True)
        run(place, ("begun", "SIGKILL", "os.rename samples/train/#.parquet", 3))
    return place


def methods() -> list[str]:
    """Every strategy that can be trained with the default algorithm, and every algorithm with neighbor mixing."""
    strategies, algorithms = (sorted((ROOT / "conf" / group).glob("*.yaml")) for group in ("exploration", "algorithm"))
    trained = [path.stem for path in strategies if "trainable: false" not in path.read_text("utf-8")]
    with_grpo = [f"exploration={name}" for name in trained]
    return with_grpo + [f"exploration=neighbor_mix algorithm={path.stem}" for path in algorithms]


def outcome(case: Case) -> str | None:
    """Runs a case to its end; what was wrong, None where nothing was."""
    kind, action, name, count = case
    method = name if kind == "kills" else f"{METHOD} {TWO[kind]}" if kind in TWO else METHOD
    reference, duration = whole(method)
    place = OUT / "case" / "-".join((kind, re.sub(r"\W+", "_", name), str(count), action))
    shutil.rmtree(place, ignore_errors=True)
    found, told, trusted = None, "", []
    if kind == "kills":
        run(place, None, duration * random.Random(count).uniform(0.05, 1.0), method)
    elif kind in TWO:
        found = signalled(case, place, method, duration * random.Random(f"{action} {name} {count}").uniform(0.05, 1.0))
    elif kind == "damage":
        told, trusted = spoil(place, reference, case)
    else:
        found = wrong(case, place, *run(place, case))
    code, text = ended(together(place, method), place) if kind in TWO else run(place, None, None, method, *trusted)
    if "Traceback" in told + text:
        found = f"a traceback: {(told + text)[-600:]}"
    if not found and (code, status(place)) != (0, "finished"):
        found = f"the same command ended with {code}: {text[-600:]}"
    spoilt = name.partition(":")[2] if trusted else None
    now, then = digests(place), digests(reference)
    differ = {file for file in now.keys() | then.keys() if now.get(file) != then.get(file)} - {spoilt}
    if not found and differ:
        found = f"other files: {sorted(differ)}: {told[-300:]} {text[-300:]}"
    if not found:
        shutil.rmtree(place)
    return found


def together(place: Path, method: str) -> subprocess.Popen:
    """A run of two processes, which Fabric starts, in a group of their own."""
    place.mkdir(parents=True, exist_ok=True)
    words = [*WORDS, *method.split(), f"hydra.run.dir={place / 'run'}"]
    with (place / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", *words], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def ended(process: subprocess.Popen, place: Path) -> tuple[int | None, str]:
    """(exit status, what it printed); None where it hangs: every process of it is killed then."""
    try:
        code = process.wait(120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        code = None
    return code, (place / "log").read_text(errors="replace")


def signalled(case: Case, place: Path, method: str, seconds: float) -> str | None:
    """What two processes should not have done after a signal to one or both; a rank that is not there yet gets none."""
    _, action, who, _ = case
    process = together(place, method)
    time.sleep(seconds)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
    ranks = [process.pid, *map(int, children.stdout.split())]
    for pid in ranks if who == "all" else ranks[int(who) : int(who) + 1]:
        with suppress(ProcessLookupError):
            os.kill(pid, Signals[action])
    code, text = ended(process, place)
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
    if code is None or len(left) > 1:
        return f"hung: {text[-600:]}"
    before = "running" if "Child process" in text else "interrupted"  # Fabric kills the first where another ends early
    return (
        None if code == 0 or status(place) in (before, "finished", None) else f"status {status(place)}: {text[-600:]}"
    )


def spoil(place: Path, reference: Path, case: Case) -> tuple[str, list[str]]:
    """Spoils a file of a copy and lets the same command meet it: what that printed, and what makes it go on."""
    _, action, name, _ = case
    state, _, file = name.partition(":")
    shutil.copytree(reference if state == "finished" else begun(), place, ignore=shutil.ignore_patterns("seconds"))
    path = place / "run" / file
    path.unlink() if action == "gone" else path.write_bytes(SPOIL[action](path.read_bytes()))
    if state == "begun" and not file.startswith("run.json"):
        code, text = run(place)
        named = [line for line in text.splitlines() if str(path) in line or path.name in line]
        if code == 0:  # what it could make again is made again, and digests tell
            return text, []
        if "has no usable checkpoint" in text:  # the only one: nothing is left to go on from, and that is said
            lines = [line for line in text.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1 and path.name in lines[0] and "fresh=true" in lines[0], text[-600:]
            path.write_bytes((begun() / "run" / file).read_bytes())
            return text, []
        assert code == 2 and len(named) == 1 and "trust_changed=true" in named[0], f"{code}: {text[-600:]}"
        return text, ["trust_changed=true"]
    code, text = run(place)
    if file.startswith(NOT_READ) or file.split("/")[0] == "checkpoints":
        return text, []
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and str(path) in lines[0], f"{code}: {text[-600:]}"
    if file in (
        "run.json",
        "results.json",
    ):  # nothing is lost: whoever has a copy puts it back, and else it is done anew
        whole_record = (reference if state == "finished" else begun()) / "run" / file
        path.write_bytes(whole_record.read_bytes())
        return text, []
    return text, ["trust_changed=true"]


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
    states = {"finished": whole()[0], "begun": begun()}
    there = [(state, place, path) for state, place in states.items() for path in sorted((place / "run").rglob("*"))]
    named = [f"{state}:{path.relative_to(place / 'run')}" for state, place, path in there if path.is_file()]
    damage: list[Case] = [("damage", action, name, 0) for name in named for action in (*SPOIL, "gone")]
    yield from spread(damage, asked["damage"])
    who = [(action, name, at) for at in range(10) for name in ("all", "0", "1") for action in SIGNALS]
    for kind in TWO:
        yield from spread([(kind, *one) for one in who], asked[kind])
    every = methods()
    yield from (("kills", "SIGKILL", every[count % len(every)], count) for count in range(asked["kills"]))


def write_page(outcomes: list[dict[str, Any]]) -> None:
    rows = ["| what happened | times | in order | otherwise |", "|---|---|---|---|"]
    for kind, told in TOLD.items():
        good = [one["wrong"] is None for one in outcomes if one["case"][0] == kind]
        rows.append(f"| {told} | {len(good)} | {sum(good)} | {len(good) - sum(good)} |")
    page = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub("\n" + "\n".join(rows) + "\n\n", page), "utf-8")


def main(argv: list[str]) -> int:
    asked = {"kills": 200, "signals": 64, "full": 23, "damage": 1000, "ranks": 90, "sharded": 90}
    asked |= {kind: int(number) for kind, number in (word.split("=") for word in argv)}
    names, log = OUT / "points", OUT / "outcomes.jsonl"
    if not names.exists():
        shutil.rmtree(OUT, ignore_errors=True)
        run(
            OUT / "noted", ("", "note", str(names), 0)
        )  # which also warms the server, so that the next measures a run alone
    noted = Counter(names.read_text().splitlines())
    noted.update({f"import {name}": 1 for name in ("hydra", "omegaconf", "torch", "transformers", "rich", "lightning")})
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for case in cases(noted, asked):
        if list(case) not in [one["case"] for one in done]:
            try:
                found = outcome(case)
            except AssertionError as error:
                found = str(error)
            done.append({"case": list(case), "wrong": found})
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{len(done)} {' '.join(map(str, case))}: {done[-1]['wrong'] or 'in order'}", flush=True)
    write_page(done)
    return int(any(one["wrong"] for one in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
