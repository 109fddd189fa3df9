"""The density contract: what a strategy draws is what its log_prob says, and what it records is what its class claims.

`python -m ngrpo.contract exploration=<name>` holds 200,000 keyed draws on a vocabulary of a few tokens against a law that
is worked out anew (`laws`), at three temperatures, and sees to it that the checks would notice a strategy that was
tampered with (`mutations`). Strategies of one's own have the same checks: python -m ngrpo.contract --config-dir <mine>.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ngrpo import build
from ngrpo.contract.checks import examine
from ngrpo.contract.mutations import COMPARED, Mutant, mutations
from ngrpo.contract.setting import VOCABULARY, Setting, V
from ngrpo.contract.statistics import Finding
from ngrpo.exploration.base import Exploration

__all__ = ["ROWS", "TEMPERATURES", "Setting", "built", "examine", "mutations", "noticed"]

ROWS = 200_000
TEMPERATURES = (0.6, 1.0, 1.3)
FEW = 3  # what a count that is no smaller than the vocabulary becomes: a filter of 20 of 10 tokens would filter nothing


def built(config: DictConfig, temperature: float, setting: Setting) -> Exploration:
    """The strategy of a configuration at a temperature, ready for the setting."""
    OmegaConf.update(config, "temperature", temperature)
    node = _small(build.plain(config.exploration))
    strategy = build.instantiate(node | ({"temperature": temperature} if "temperature" in node else {}))
    strategy.bind(VOCABULARY, setting.table)
    strategy.prepare(setting.table, 0, setting.table)
    return strategy


def _small(node: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's node with every count that is too large for the vocabulary made smaller."""
    parts = {name: _small(part) for name, part in node.items() if isinstance(part, Mapping)}
    large = {name for name, value in node.items() if type(value) is int and value >= V and name != "seed"}
    return {**node, **parts, **dict.fromkeys(large, FEW)}


def noticed(strategy: Exploration, setting: Setting, mutant: Mutant) -> Finding | None:
    """The first check that a mutant fails, of few rows or else of all; None where it passes for the strategy."""
    found = (finding for rows in (COMPARED, ROWS) for finding in examine(strategy, setting, rows, mutant))
    return next((finding for finding in found if finding.fails), None)
