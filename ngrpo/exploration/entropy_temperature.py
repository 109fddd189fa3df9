"""A control for any strategy: plain sampling of the same entropy, since a higher temperature alone might explain its gain."""

from ngrpo.exploration.base import Exploration, Matched
from ngrpo.exploration.token_sampling import TokenSampling


class EntropyTemperature(TokenSampling):
    """o ~ softmax(z / tau), fed = E[o], tau such that sampling at tau has the same mean entropy as `strategy`.

    training.matching finds tau on at most `problems` held-out problems; until then it is `temperature`. `match` is the
    name of the strategy. Not from a paper: the question is whether a trick is more than a higher temperature.
    """

    def __init__(
        self, strategy: Exploration, match: str, problems: int = 48, temperature: float = 1.0, top_p: float = 1.0
    ):
        super().__init__(temperature, top_p)
        self.matched = Matched(match, strategy, problems)
