"""Strategies put together of their parts, with the names and defaults of their files in conf/exploration."""

from typing import Any

from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.exploration.dirichlet_soft import Dirichlet
from ngrpo.exploration.gate import Gate
from ngrpo.exploration.gaussian_noise import GaussianNoise
from ngrpo.exploration.gaussian_soft import Gaussian
from ngrpo.exploration.gumbel_soft import Gumbel
from ngrpo.exploration.mixing import Mixing
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.exploration.norm_matched_noise import MatchedNoise
from ngrpo.exploration.orthogonal_noise import OrthogonalNoise
from ngrpo.exploration.perturbed import PerturbedThinking
from ngrpo.exploration.random_neighbor_mix import RandomRows
from ngrpo.exploration.topk_gumbel_select import TopkGumbelSelect


def neighbor_mix(
    rate: float | None,
    k: int,
    metric: str = "cosine",
    *,
    weights: str = "raw",
    refresh_every: int = 10,
    entropy_threshold: float | None = None,
    **settings: Any,
) -> Mixing:
    recipe = Neighbors(k, metric, weights, refresh_every=refresh_every)
    return Mixing(Gate(rate, entropy_threshold), recipe, **settings)


def random_neighbor_mix(rate: float | None, k: int, seed: int, **settings: Any) -> Mixing:
    return Mixing(Gate(rate), RandomRows(k, seed), **settings)


def norm_matched_noise(rate: float | None, k: int, **settings: Any) -> Mixing:
    return Mixing(Gate(rate), MatchedNoise(k), **settings)


def orthogonal_noise(rate: float | None, k: int, noise: str = "scalar", **settings: Any) -> Mixing:
    return Mixing(Gate(rate), OrthogonalNoise(k, noise), **settings)


def gaussian_noise(rate: float, scale: float, **settings: Any) -> Mixing:
    return Mixing(Gate(rate), GaussianNoise(scale), anchor="sampled", text_token="sampled", **settings)


def topk_gumbel_select(rate: float | None, k: int, text_token: str = "anchor", **settings: Any) -> TopkGumbelSelect:
    return TopkGumbelSelect(Gate(rate), k, text_token, **settings)


def perturbed(kind: type, names: tuple[str, ...], *given: Any, **settings: Any) -> PerturbedThinking:
    """Settings of these names go to the noise, which is of this kind; so do the first that are given without a name."""
    noise = kind(*given[: len(names)], **{name: settings.pop(name) for name in names if name in settings})
    return PerturbedThinking(noise, *given[len(names) :], **settings)


def gumbel_soft(*given: Any, **settings: Any) -> PerturbedThinking:
    return perturbed(Gumbel, ("noise_factor", "soft_temperature", "clamp"), *given, **settings)


def dirichlet_soft(*given: Any, **settings: Any) -> PerturbedThinking:
    return perturbed(Dirichlet, ("concentration",), *given, **settings)


def gaussian_soft(*given: Any, **settings: Any) -> PerturbedThinking:
    return perturbed(Gaussian, ("sigma",), *given, **settings)


def neighbor_ids(strategy: Exploration) -> Tensor:
    """(V, k) of the table that neighbor mixing has been prepared with."""
    assert isinstance(strategy, Mixing) and isinstance(strategy.recipe, Neighbors)
    ids = strategy.recipe.neighbors.ids
    assert isinstance(ids, Tensor)
    return ids
