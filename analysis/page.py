"""One self-contained HTML page of a report, from finished tables and figures.

Model text is escaped by the template, control characters are made visible, and a content security policy lets nothing run
or load but the page's own style and script, by their digests.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup  # comes with jinja2

from analysis.comparison import Comparison
from analysis.load import UNTRAINED, Study
from analysis.tables import Table, html_table
from ngrpo.rundir.files import write_atomically

PROBLEMS, SAMPLES = 12, 3  # per benchmark; per problem and method
TEXT = 250_000  # characters of all completions together: what keeps a page below a megabyte
SHORTEST, LONGEST = 300, 4000  # characters of one completion or problem
COLUMNS = ("problem_id", "sample_index", "prompt", "completion", "gold", "outcome")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def write(
    study: Study,
    comparison: Comparison,
    sentences: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
    path: Path,
    why: str,
) -> None:
    """The page at `path`, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["digest"] = digest
    seeds = "-".join(map(str, sorted(set(study.runs.groupby("arm")["seed"].nunique()))))
    browser = Browser(study, comparison)
    text = environment.get_template("page.html.j2").render(
        baseline=visible(comparison.baseline),
        summary=visible(
            f"{len(study.arms)} methods, {seeds} training seed{'s' * (seeds != '1')}, {', '.join(study.benchmarks)}"
        ),
        verdict=[visible(line) for line in sentences],
        why=why,
        tables=[{"name": t.name, "title": t.title, "html": Markup(visible(html_table(t)))} for t in tables],
        figures=[{"data": base64.b64encode(p.read_bytes()).decode(), "caption": caption} for p, caption in figures],
        problems=browser.problems(),
        arms=[visible(arm) for arm in browser.arms],
        shown=f"For each method the problems of a benchmark on which it is furthest ahead of and behind {comparison.baseline}, "
        f"up to {PROBLEMS} in all, with {SAMPLES} completions of every method; all are in the sample files.",
        left_out=[visible(f"{row.path}: {row.reason}") for row in study.left_out.itertuples()],
    )
    write_atomically(path, text.encode())


def visible(text: str) -> str:
    """`text` with control characters and half surrogates as the replacement character; line ends and tabs stay."""
    return CONTROL.sub("\ufffd", text)


def digest(text: str) -> str:
    """The source expression that allows this one script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}'"


class Browser:
    """Problems with the completions of every method; the reader may compare any two methods side by side."""

    def __init__(self, study: Study, comparison: Comparison):
        self.study, self.baseline = study, comparison.baseline
        others = [arm for arm in study.arms if arm not in (self.baseline, UNTRAINED)]
        mixed = [arm for arm in comparison.fairness.controls if arm != self.baseline]
        first = [arm for arm in (*mixed, *comparison.fairness.ranked, *others, UNTRAINED) if arm in study.arms]
        self.arms = list(dict.fromkeys([self.baseline, *first]))  # the first two are laid side by side at the beginning
        self.rates = {(str(b), str(a)): _rates(part) for (b, a), part in study.counts.groupby(["benchmark", "arm"])}

    def problems(self) -> list[dict[str, Any]]:
        """Problems as the template shows them, none where the samples have no text."""
        chosen = {benchmark: self._chosen(benchmark) for benchmark in self.study.benchmarks}
        every = {problem for problems in chosen.values() for problem in problems}
        texts = sum(map(len, chosen.values())) * SAMPLES * len(self.arms)
        longest = min(LONGEST, max(SHORTEST, TEXT // max(texts, 1)))
        shown = []
        for benchmark, problems in chosen.items():
            found = {arm: self.study.samples(arm, benchmark, COLUMNS, every) for arm in self.arms}
            rows = {arm: dict(list(frame.groupby("problem_id"))) for arm, frame in found.items() if len(frame)}
            if any(frame["completion"].fillna("").ne("").any() for frame in found.values() if len(frame)):
                shown += [self._problem(benchmark, problem, rows, longest) for problem in problems]
        return shown

    def _chosen(self, benchmark: str) -> list[str]:
        """For each arm in turn, the problem where it is furthest ahead, then furthest behind, then the next ones."""
        queues = []
        for arm in self.arms[1:]:
            if arm != UNTRAINED and (benchmark, arm) in self.rates and (benchmark, self.baseline) in self.rates:
                gaps = (self.rates[benchmark, arm] - self.rates[benchmark, self.baseline]).sort_values(kind="stable")
                queues += [list(gaps.index[::-1]), list(gaps.index)]
        if not queues:
            queues = [list(rates.index) for (name, _), rates in self.rates.items() if name == benchmark][:1]
        turns = (problem for turn in zip(*queues, strict=False) for problem in turn)
        return list(islice(dict.fromkeys(turns), PROBLEMS))

    def _problem(self, benchmark: str, problem: str, rows: Mapping[str, Any], longest: int) -> dict[str, Any]:
        sides = []
        for at, arm in enumerate(self.arms):
            if problem in rows.get(arm, ()):
                told = f"solved {self.rates[benchmark, arm][problem]:.0%}"
                sides.append(
                    {"at": at, "arm": visible(arm), "told": told, "samples": _rows(rows[arm][problem], longest)}
                )
        first = next(rows[arm][problem] for arm in self.arms if problem in rows.get(arm, ())).iloc[0]
        solved = [self.rates[benchmark, arm][problem] for arm in self.arms if (benchmark, arm) in self.rates]
        texts = {name: _text(first[name], LONGEST) for name in ("prompt", "gold")}
        told = f"solved {min(solved):.0%} to {max(solved):.0%}"
        return {"id": _text(problem, 80), "benchmark": visible(benchmark), "told": told, "sides": sides, **texts}


def _rates(part: Any) -> Any:
    sums = part.groupby("problem_id")[["c", "n"]].sum()
    return sums["c"] / sums["n"]


def _rows(frame: Any, longest: int) -> list[Mapping[str, Any]]:
    rows = frame.sort_values(["sample_index", "seed"]).head(SAMPLES).to_dict("records")
    return [
        {**row, "completion": _text(row["completion"], longest), "outcome": _text(row["outcome"], 40)} for row in rows
    ]


def _text(value: Any, longest: int) -> str:
    """At most so many characters; a longer text keeps its beginning and its end, which holds the answer."""
    text = visible("" if value is None else str(value))
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} … {len(text) - longest} characters … {text[-(longest - longest // 2) :]}"
