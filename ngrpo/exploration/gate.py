"""When exploration acts while a row thinks: with some probability, and where the next token is uncertain enough."""

from torch import Tensor

from ngrpo.exploration.scores import entropy, tempered
from ngrpo.rollout.keys import Draws


class Gate:
    """Open with probability `rate` (null: always), and only where softmax(z / temperature) has more than
    `entropy_threshold` nats (null: everywhere)."""

    def __init__(self, rate: float | None, entropy_threshold: float | None = None):
        self.rate, self.entropy_threshold = 1.0 if rate is None else rate, entropy_threshold

    def open(self, logits: Tensor, draws: Draws, temperature: float) -> Tensor:
        """(B,) bool from logits (B, V) and the step's draws (B,)."""
        chosen = draws.explore < self.rate
        if self.entropy_threshold is None:
            return chosen
        return chosen & (entropy(tempered(logits, temperature)) > self.entropy_threshold)
