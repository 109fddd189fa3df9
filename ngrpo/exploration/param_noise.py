"""Parameter noise: all answers of an RL step come from one perturbed policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import row_key
from ngrpo.targets import SettingsError

TARGETS = {"all": "", "mlp": ".mlp."}  # substrings of the names of parameters that get noise
STEP, TOLERANCE = (
    1.01,
    1.1,
)  # factors: of one adaptation of sigma, and of the deviation from the target that calls for it
SMALLEST, LARGEST = 1e-6, 0.5  # bounds of an adapted sigma


class ParameterNoise(TokenSampling):
    """Token sampling from the weights w + sigma N(0, I), with new noise in every RL step, shared by all of its answers.

    Training, evaluation and replay have no noise; algorithm.correction weights each token by min(pi(o) / pi~(o), cap),
    pi~ the perturbed policy. Source: the released code of PSN (arXiv 2602.02555), baibizhe/psn_rlvr at 6a27058, whose filter
    of names has no effect, so that every parameter gets noise (targets=all). The paper, whose text was not read, is said
    to perturb MLP layers (mlp), and to have a scheduler by semantic similarity, which is not implemented.

    sigma      standard deviation, independent of the size of a weight; drawn in float32 and added before rounding
    target_kl  nats: after a step whose mean of log pi~(o) - log pi(o) is more than 1.1 times it, sigma is divided by 1.01,
               after one where it is less than 1 / 1.1 times it, multiplied; None: sigma is constant

    Noise depends on seed, step and the parameter's name, so that every rank draws the same. It is drawn on the weights'
    device: a GPU draws other noise than a CPU.
    """

    acts_on = "weights"
    sigma: Tensor
    step: int

    def __init__(
        self,
        seed: int,
        sigma: float,
        targets: str = "all",
        target_kl: float | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(temperature, top_p)
        self.seed, self.targets, self.target_kl, self.inside = seed, targets, target_kl, False
        self.register_buffer("sigma", torch.tensor(sigma, dtype=torch.float64))  # so that checkpoints have it

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> dict[str, float]:
        self.step = step
        return {"noise_scale": self.sigma.item()}

    def adapt(self, figures: Mapping[str, float]) -> None:
        if self.target_kl is None:
            return
        if figures["noise_kl"] > TOLERANCE * self.target_kl:
            self.sigma.div_(STEP).clamp_(SMALLEST, LARGEST)
        elif figures["noise_kl"] < self.target_kl / TOLERANCE:
            self.sigma.mul_(STEP).clamp_(SMALLEST, LARGEST)

    @contextmanager
    def perturbed(self, model: nn.Module) -> Iterator[None]:
        if self.inside:
            yield
            return
        chosen = {name: p for name, p in model.named_parameters() if TARGETS[self.targets] in name}
        if not chosen:
            problem = f"exploration.targets={self.targets}: the model has no modules named {self.targets}"
            raise SettingsError(f"{problem}; exploration.targets=all")
        kept = {name: p.detach().clone() for name, p in chosen.items()}  # subtracting the noise again would round
        self.inside = True
        try:
            with torch.no_grad():
                for name, parameter in chosen.items():
                    parameter.add_(self._noise(name, parameter), alpha=self.sigma.item())
            yield
        finally:
            with torch.no_grad():
                for name, parameter in chosen.items():
                    parameter.copy_(kept[name])
            self.inside = False

    def _noise(self, name: str, like: Tensor) -> Tensor:
        """Standard normals, float32, of the shape of a parameter."""
        seed = row_key("param noise", self.seed, self.step, name) % 2**63
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(like.shape, generator=generator, device=like.device)
