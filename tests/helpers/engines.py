"""What the two engines' rollouts may differ by."""

from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.parity import Parity, parity
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.records import Rollouts

DIFFERING = 16  # one row in so many may have a token that the reference would not draw, where a draw lies at an edge;
DRIFTING = 8  # and one in so many a text that parts from the reference's, as what differs in fed vectors adds up
TOKEN_GAP, DENSITY_GAP = 1e-4, 1e-5  # nats of one step, the second times the square root of the width,
TIMES = 3  # or so many times what the reference engine's own densities are off, if that is more


def held(
    engine: Engine, strategy: Exploration, model: CausalModel, prompts: Tensor, mask: Tensor, keys: Tensor, limit: int
) -> tuple[Parity, Rollouts]:
    """The engine, given these weights, held against the reference engine and the replay of what it recorded."""
    engine.sync(model, 0, strategy)
    ours = engine.generate(strategy, prompts, mask, keys, limit)
    found = parity(model, strategy, ours, prompts, mask, limit)
    assert found.parted <= found.rows / DRIFTING and found.redrawn <= found.rows / DIFFERING, found
    assert max(found.token_gap, found.entropy_gap) <= TOKEN_GAP, found
    assert found.density_gap <= max(DENSITY_GAP * model.table.shape[1] ** 0.5, TIMES * found.reference_density_gap), (
        found
    )
    return found, ours
