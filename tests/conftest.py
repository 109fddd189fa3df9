"""Small random models, a vocabulary that their texts run into, strategies as the configs build them, rollouts."""

import copy
import math
import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of two threads the one that waits leaves the core to other tests

import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir
from places import CONF, FAMILIES
from torch.nn import functional as F

from ngrpo.cli.identity import register_resolvers
from ngrpo.composed import instantiate, plain
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.records import Vocabulary

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup sets to be ignored, by what the tests start too

LONG = ("test_sweeper.py", "test_resume.py")  # begun first: at the end, one process would be left alone with them
ROWS, SIZE, WIDTH = 64, 60, 32  # embedding rows, ids that the tokenizer has, width


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@cache
def _model(family: str, tied: bool, dtype: torch.dtype, seed: int, precision: str, head_dim: int = 8) -> CausalModel:
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif parameter.shape[0] == ROWS:
            value = 0.35 * noise  # logits with a standard deviation of about 2: far from uniform and from certain
        else:
            value = 1.0 / math.sqrt(parameter.shape[1]) * noise  # attention scores with one of about 1
        parameter.data.copy_(value)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 50_000
    return CausalModel(model.to(dtype), precision)


def _make_model(
    family: str = "qwen2",
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    precision: str = "float32",
    head_dim: int = 8,
) -> CausalModel:
    """Every call gives a model of its own, so that a test may change it."""
    return copy.deepcopy(_model(family, tied, dtype, seed, precision, head_dim))


@pytest.fixture(scope="session")
def make_model():
    return _make_model


def _prompts(
    count: int, *, seed: int = 0, longest: int = 7, prefix: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts (P, S): `prefix` and 2 to `longest` tokens, at least one of each length if there are enough."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([longest - i % (longest - 1) for i in range(count)])
    mask = torch.arange(longest)[None] >= longest - lengths[:, None]
    own = torch.randint(4, SIZE, (count, longest), generator=generator)
    ids = [[0] * (longest - n) + [*prefix, *row[longest - n :].tolist()] for n, row in zip(lengths, own, strict=True)]
    return torch.tensor(ids), F.pad(mask.flip(1), (len(prefix), 0), value=True).flip(1)


@pytest.fixture(scope="session")
def make_prompts():
    return _prompts


def _keys(count: int, seed: object = 0) -> torch.Tensor:
    return row_keys((str(seed), index) for index in range(count))


@pytest.fixture(scope="session")
def make_keys():
    return _keys


@cache
def _vocabulary(family: str, tied: bool, seed: int, head_dim: int = 8) -> Vocabulary:
    model = _model(family, tied, torch.float32, seed, "float32", head_dim)
    strategy = TokenSampling()
    strategy.bind(Vocabulary(SIZE, (0,), (0,)), model.table.detach())
    tokens = generate(model, strategy, *_prompts(6), _keys(96, "vocabulary"), 24).steps.tokens.tolist()
    often = Counter(token for row in tokens for token in row if 0 < token < SIZE)
    pairs = Counter(pair for row in tokens for pair in itertools.pairwise(row) if len(set(pair)) == 2)
    pair = next(p for p, _ in pairs.most_common() if all(0 < token < SIZE for token in p))
    others = [token for token, _ in often.most_common() if token not in pair]
    stops = tuple(sorted(others[6:8]))  # texts end before the limit, but not at once
    return Vocabulary(SIZE, tuple(sorted((0, *others[2:4], *stops))), stops, pair, tuple(others[-2:]))


@pytest.fixture(scope="session")
def make_vocabulary():
    """The vocabulary for models of one family: its stops, reserved tokens and two-token delimiter do come up in texts.

    Four embedding rows are padding; the first id is that of padding in a text.
    """

    def make(family: str = "qwen2", *, tied: bool = False, seed: int = 0, head_dim: int = 8) -> Vocabulary:
        return _vocabulary(family, tied, seed, head_dim)

    return make


@cache
def _exploration(name: str, temperature: float) -> dict:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"exploration={name}", f"temperature={temperature}"])
    return plain(config.exploration)


STRATEGIES = sorted(path.stem for path in (CONF / "exploration").glob("*.yaml"))


@pytest.fixture(params=STRATEGIES)
def strategy_name(request) -> str:
    """Every strategy that has a config file."""
    return request.param


def _changed(node: dict, changes: dict) -> dict:
    """A strategy's node with settings of it or of its parts changed."""
    parts = {name: _changed(part, changes) for name, part in node.items() if isinstance(part, dict)}
    return {**node, **parts, **{name: value for name, value in changes.items() if name in node}}


@pytest.fixture(scope="session")
def make_strategy():
    """A strategy as its YAML builds it, exploring at half of the steps where it has a rate, bound and prepared."""

    def make(name: str, model: CausalModel, vocabulary: Vocabulary, temperature: float = 1.0, **changes):
        strategy = instantiate(_changed(_exploration(name, temperature), {"rate": 0.5, **changes}))
        strategy.bind(vocabulary, model.table.detach())
        strategy.prepare(model.table.detach(), 0, model.head.detach())
        return strategy

    return make


@pytest.fixture(scope="module")
def setting(make_model, make_vocabulary):
    """A small model and a vocabulary for it."""
    return make_model(), make_vocabulary()


@pytest.fixture(scope="session")
def ready():
    """`ready(strategy, model, vocabulary)`: the strategy, bound and prepared."""

    def make(strategy, model: CausalModel, vocabulary: Vocabulary):
        strategy.bind(vocabulary, model.table.detach())
        strategy.prepare(model.table.detach(), 0, model.head.detach())
        return strategy

    return make


@pytest.fixture(scope="session")
def make_rollouts():
    """Rollouts of `prompts` x `group` rows, whose prompts begin with `prefix`; the seed names the rows' keys."""

    def make(model, strategy, *, prompts=4, group=4, new_tokens=16, seed: object = 0, prefix: Sequence[int] = ()):
        asked = _prompts(prompts, prefix=prefix)
        return generate(model, strategy, *asked, _keys(prompts * group, seed), new_tokens)

    return make
