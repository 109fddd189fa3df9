"""A control for any strategy: plain sampling that is as uncertain as the strategy, since heat alone might explain its gain."""

from ngrpo.exploration.base import Exploration, Matched
from ngrpo.exploration.token_sampling import TokenSampling


class EntropyTemperature(TokenSampling):
    """o ~ softmax(z / tau), fed = E[o], tau such that sampling at tau has the mean entropy that `strategy` has.

    Until training.matching has found tau, on at most so many held-out `problems`, it is `temperature`. `match` is the name
    of the strategy. No paper's: the question is whether a trick is more than a higher temperature.
    """

    def __init__(
        self, strategy: Exploration, match: str, problems: int = 48, temperature: float = 1.0, top_p: float = 1.0
    ):
        super().__init__(temperature, top_p)
        self.matched = Matched(match, strategy, problems)
