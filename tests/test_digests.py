"""The numbers of 0.1, digit for digit: digests of what three RL steps of every method wrote, taken before the house moved.

Of results.json all numbers but the ends of intervals, which have been made by another formula since.

`python tests/test_digests.py` writes them anew. Two kinds of x86 processor gave the same ones (one thread, torch 2.13.0).
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "helpers"))
import warm  # noqa: E402

DIGESTS = TESTS / "data" / "digests_0.1.json"
CONF = TESTS.parent / "conf"
OVERRIDES = ("trainer=smoke", "steps=3", "seed=1", "trainer.threads=1", "n=4", "problems=8")
ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
STRATEGIES = sorted(path.stem for path in (CONF / "exploration").glob("*.yaml"))
METHODS = [f"{name} token_sampling" for name in ALGORITHMS]
METHODS += [f"grpo {name}" for name in STRATEGIES if name not in ("token_sampling", "soft_thinking")]
METHODS = [name for name in METHODS if name in json.loads(DIGESTS.read_text("utf-8"))]  # others have come since
# Whose defaults have changed since, and the overrides that bring back what 0.1 did.
AS_BEFORE = {
    "dapo": ["algorithm.carry_surplus=false"],
    "ngrpo_negative": ["algorithm.carry_surplus=false"],
    "unlikeliness": ["algorithm.reward_shaping.unlikeliness.likelihood=sum"],
}


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def without_intervals(node):
    """The content of results.json without the keys `low` and `high`."""
    if not isinstance(node, dict):
        return node
    return {key: without_intervals(value) for key, value in node.items() if key not in ("low", "high")}


def digests_of(run: Path) -> dict[str, str]:
    """Digests of a run's metrics column by column, its samples, results and weights; nothing that names the run."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {f"metrics {name}": short(repr([row[name] for row in rows]).encode()) for name in rows[0]}
    for path in sorted((run / "samples").rglob("*.parquet")):
        table = pyarrow.parquet.read_table(path)
        table = table.drop_columns(["run"]) if "run" in table.column_names else table
        columns = {name: table[name].to_pylist() for name in sorted(table.column_names)}
        found[str(path.relative_to(run))] = short(repr(columns).encode())
    found["results"] = short(
        json.dumps(without_intervals(json.loads((run / "results.json").read_text("utf-8")))).encode()
    )
    found["weights"] = short((run / "hf" / "model.safetensors").read_bytes())
    return found


def run_method(method: str, folder: Path) -> dict[str, str]:
    algorithm, exploration = method.split()
    place = folder / f"{exploration}-{algorithm}"
    chosen = (f"algorithm={algorithm}", f"exploration={exploration}", f"hydra.run.dir={place}")
    chosen += tuple(AS_BEFORE.get(algorithm, ()))
    warm.finish("train.py", folder / f"{place.name}.log", *OVERRIDES, *chosen)
    return digests_of(place)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_still_writes_the_same_numbers(method, tmp_path):
    before, now = json.loads(DIGESTS.read_text("utf-8"))[method], run_method(method, tmp_path)
    assert {name: now.get(name) for name in before} == before


if __name__ == "__main__":
    from concurrent.futures import ThreadPoolExecutor
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        found = dict(zip(METHODS, pool.map(lambda method: run_method(method, Path(name)), METHODS), strict=True))
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
