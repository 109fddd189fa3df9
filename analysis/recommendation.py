"""Whether exploration is the bottleneck: one of six answers, or that the sample is too small to tell.

The rules look at plain token sampling at the temperature of training. Shares are means over problems: `malformed` of answers
that are not well-formed (none could be read, or cut off at the limit), R, W and M = 1 - R - W of groups of G answers that
are all right, all wrong, and mixed. The first that holds is the answer:

    format     malformed >= 50 %   most answers cannot be graded: what is missing is the format
    solved     R >= 80 %     hardly a group is left that could teach anything: the head room is gone
    too_hard   W >= 80 %     hardly a group has a right answer: no trick on the inputs makes up for what the model lacks
    signal     M >= 50 %     most groups mix right and wrong: plain RL has a signal already
    stuck      W >= R        most groups without signal are all wrong: exploration may be the bottleneck
    easy       otherwise     most groups without signal are all right: harder problems come first

An answer is given where the same rules give it in at least 95 % of problem sets drawn anew from the sampled ones (a
bootstrap over problems), and never with fewer than 14 problems: even if all of those agree, up to 0.05^(1/13) = 21 % of
others may not (95 % confidence), so that 80 % could not be told. `too_hard` is taken back to `stuck` where a strategy is
shown to solve problems that token sampling does not.

That a strategy is better or worse is said where an exact McNemar test on problems solved at least once, or a permutation
test on mean@n, rejects at 5 % after Benjamini-Hochberg; that it damages texts where the 95 % interval of the change lies
above 0 and the change is at least a point. The rules do not know how training would go on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.diagnosis import Diagnosis, group_shares
from analysis.fairness import PLAIN
from analysis.intervals import Array
from analysis.statistics import p_text

MOST, HALF = 0.8, 0.5
FEWEST = 14  # problems
SURE = 0.95  # share of resampled problem sets that have to agree
DRAWS = 4_000
ALPHA = 0.05
DAMAGE = 1.0  # points of malformed answers
SAYS = {
    "format": "format, and not exploration, is the bottleneck",
    "solved": "exploration is not the bottleneck, because hardly anything is left to find",
    "too_hard": "the task is too hard for this model",
    "signal": "exploration is not the first bottleneck, because plain RL already has a signal",
    "stuck": "exploration may be the bottleneck",
    "easy": "exploration is not the bottleneck, because most groups without a signal are all right",
}


@dataclass(frozen=True)
class Recommendation:
    """`kind`: a key of SAYS, or `too_small`; `head`: the answer with its figure; `lines`: advice, strategies, caveats."""

    kind: str
    head: str
    lines: list[str]


def recommend(diagnosis: Diagnosis) -> Recommendation:
    """The answer for a diagnosis, by the rules above."""
    base, group = diagnosis.sampled.baseline, int(diagnosis.sampled.config["group_size"])
    columns = np.stack([base.malformed.mean(axis=1), *group_shares(base.solved, base.correct.shape[1], group)], axis=1)
    shares = stability(columns)
    kind = max(shares, key=lambda name: (name == kind_of(*columns.mean(axis=0)), shares[name]))
    better = _solvers(diagnosis.pairs)
    rest = [*_strategies(diagnosis, better), *_caveats(diagnosis)]
    if len(columns) < FEWEST or shares[kind] < SURE:
        return Recommendation("too_small", _too_small(diagnosis, kind, shares, len(columns)), rest)
    if kind == "too_hard" and better:
        kind = "stuck"
    head = f"{SAYS[kind]}: {_figure(diagnosis, kind)}."
    return Recommendation(kind, head[0].upper() + head[1:], [_advice(diagnosis, kind), *rest])


def kind_of(malformed: float, right: float, wrong: float) -> str:
    """The first rule that holds for the three shares, each in [0, 1]."""
    if malformed >= HALF:
        return "format"
    if right >= MOST:
        return "solved"
    if wrong >= MOST:
        return "too_hard"
    if 1 - right - wrong >= HALF:
        return "signal"
    return "stuck" if wrong >= right else "easy"


def stability(columns: Array, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Answer -> the share of resampled problem sets that give it, from (P, 3) of malformed, R and W for each problem."""
    problems = len(columns)
    weights = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=draws) / problems
    # Rounded so that a share which is 80 % in exact arithmetic is not 79.999 % by the order of a sum.
    found = [kind_of(*row) for row in (weights @ columns).round(9)]
    return {kind: found.count(kind) / draws for kind in SAYS}


def _too_small(diagnosis: Diagnosis, kind: str, shares: Mapping[str, float], problems: int) -> str:
    figure = _figure(diagnosis, kind)
    if problems < FEWEST:
        return (f"The sample is too small to tell: {problems} problem{'s' * (problems > 1)}, and at least {FEWEST} are "
                f"needed. So far {figure}.")  # fmt: skip
    other = max((name for name in SAYS if name != kind), key=lambda name: shares[name])
    needed = _needed(shares[kind], problems)
    more = f"; about problems={needed} would settle it" if needed else "; it lies on the border between the two"
    return (f"The sample is too small to tell: {figure}. That would mean that {SAYS[kind]}; but of problem sets drawn anew "
            f"only {shares[kind]:.1%} agree, where {SURE:.0%} are asked for, and {shares[other]:.1%} say that "
            f"{SAYS[other]}{more}.")  # fmt: skip


def _needed(agreement: float, problems: int) -> int | None:
    """Problems at which the same shares would be agreed on, as the distance to the border in standard errors grows with
    sqrt(P); None where that is more than twenty times what there is."""
    now, wanted = stats.norm.ppf(min(agreement, SURE)), stats.norm.ppf(SURE)
    factor = (wanted / now) ** 2 if now > 0 else np.inf
    return ceil(problems * factor / 10) * 10 if factor <= 20 else None


def _figure(diagnosis: Diagnosis, kind: str) -> str:
    """The figure behind an answer, with its interval."""
    row, group = diagnosis.figures, diagnosis.sampled.config["group_size"]
    n = diagnosis.sampled.baseline.correct.shape[1]
    room = f"pass@{n} is {_range(row, 'room', 'points')} above mean@{n}"
    groups = f"of groups of {group} are all"
    return {
        "format": f"{_range(row, 'malformed')} of the answers of {PLAIN} are not well-formed: {row['unparsed']:.0f} % hold no "
        f"answer that can be read, and {row['cut']:.0f} % are cut off",
        "solved": f"{_range(row, 'all_right')} {groups} right, and {room}",
        "too_hard": f"{_range(row, 'all_wrong')} {groups} wrong, and pass@{n} is {_range(row, 'pass')}",
        "signal": f"{_range(row, 'mixed')} of groups of {group} mix right and wrong answers, and {room}",
        "stuck": f"{_range(row, 'all_wrong')} {groups} wrong and {_range(row, 'mixed')} are mixed, and {room}",
        "easy": f"{_range(row, 'all_right')} {groups} right and {_range(row, 'all_wrong')} all wrong",
    }[kind]


def _range(row: Mapping[str, Any], name: str, unit: str = "%") -> str:
    return f"{row[name]:.0f} {unit} [{row[f'{name}_low']:.0f}, {row[f'{name}_high']:.0f}]"


def _advice(diagnosis: Diagnosis, kind: str) -> str:
    limit = diagnosis.sampled.config["max_new_tokens"]
    n = diagnosis.sampled.baseline.correct.shape[1]
    return {
        "format": f"First: a longer limit (max_new_tokens={limit} now), the checkpoint's own prompt (model.prompt=chat), or a "
        "short supervised warm-up. Then diagnose again.",
        "solved": "Harder problems would give training something to learn; a strategy can change little here.",
        "too_hard": "Easier problems, a stronger or fine-tuned model, or rewards for part of the way come first: exploration "
        "alone cannot help where next to nothing right is found.",
        "signal": f"Sharpening what is sampled already can raise mean@{n} towards pass@{n}. Train {PLAIN} first; a strategy "
        "has to beat that, at equal tokens and over three seeds.",
        "stuck": "Worth a comparison over three seeds, but against the plain remedies too: larger groups, a higher "
        "temperature, easier problems.",
        "easy": "Leave out solved problems (a group filter, as in algorithm=dapo) or take harder ones first.",
    }[kind]


def _solvers(pairs: pd.DataFrame) -> list[str]:
    """Strategies shown to solve problems that token sampling does not."""
    if pairs.empty:
        return []
    found = pairs[(pairs["against"] == PLAIN) & (pairs["p_only"] < ALPHA) & (pairs["only_it"] > pairs["only_other"])]
    return found["strategy"].to_list()


def _strategies(diagnosis: Diagnosis, better: list[str]) -> list[str]:
    pairs, lines = diagnosis.pairs, []
    if pairs.empty:
        return []
    for row in pairs.itertuples():
        only = f"{row.only_it} problems only by it, {row.only_other} only by {row.against} ({p_text(row.p_only)})"
        if row.against == PLAIN and row.strategy in better:
            lines.append(f"{row.strategy} reaches problems that {PLAIN} does not: {only}.")
        elif row.p_only < ALPHA and row.only_it < row.only_other:
            lines.append(f"{row.strategy} misses problems that {row.against} solves: {only}.")
        if row.p < ALPHA:
            size = f"{row.gap:+.1f} points of mean@n [{row.low:+.1f}, {row.high:+.1f}], {p_text(row.p)}"
            word = "better" if row.gap > 0 else "worse"
            lines.append(f"{row.strategy}, untrained, is {word} than {row.against}: {size}.")
        if row.against == PLAIN and row.ill_low > 0 and row.ill_change >= DAMAGE:
            size = f"{row.broken} of {row.valid} valid answers broken, {row.mended} others mended"
            lines.append(f"{row.strategy} turns valid text into invalid: {size}, {row.ill_change:+.1f} points of all answers "
                         f"[{row.ill_low:+.1f}, {row.ill_high:+.1f}]; lower its rate or size before training.")  # fmt: skip
    if not better:
        lines.insert(0, f"No strategy is shown to reach problems that {PLAIN} does not.")
    return lines


def _caveats(diagnosis: Diagnosis) -> list[str]:
    base, arms = diagnosis.sampled.baseline, diagnosis.arms
    idle = arms[(arms["strategy"] != PLAIN) & (arms["explored"] == 0)]["strategy"]
    lines = [f"{name} feeds plain tokens alone in these answers." for name in idle]
    if base.graded:
        lines.append("This task also rewards answers that are not right: all-wrong groups may still differ in reward.")
    return [*lines, "All this is the model before training, and mixed groups become fewer as entropy falls."]
