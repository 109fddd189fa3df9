"""What holds for every strategy of conf/exploration, and for texts in which nothing is explored."""

import torch
from decode_step import V, draws_of, random


def test_what_a_strategy_holds_moves_with_it(strategy_name, make_strategy, make_model, make_vocabulary):
    """Tensors outside the buffers would stay behind on another device."""
    strategy = make_strategy(strategy_name, make_model(), make_vocabulary())
    for module in strategy.modules():
        left = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not left, f"{type(module).__name__} holds {left} outside its buffers"


def test_the_state_has_one_entry_per_row(strategy_name, make_strategy, make_model, make_vocabulary):
    model = make_model()
    strategy = make_strategy(strategy_name, model, make_vocabulary())
    state = strategy.start(5, torch.device("cpu"))
    for time in range(3):
        assert all(len(value) == 5 for value in state.values())
        step, state = strategy.sample(random(5, V, seed=time), state, draws_of(5, time), model.table.detach())
        assert step.tokens.shape == step.role.shape == step.explored.shape == (5,)
        assert step.explored.dtype == torch.bool and step.tokens.dtype == step.role.dtype == torch.int64
