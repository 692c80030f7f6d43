import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling.cost import count_parameters
from modeling.recurrent import ConvGRU


def strong(layer):
    for parameter in (*layer.input[0].parameters(), *layer.state.parameters()):
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def test_every_position_is_torchs_cell_where_the_kernel_is_one_pixel():
    layer, cell = strong(ConvGRU(4, 6, steps=3, kernel_size=1)), nn.GRUCell(4, 6)
    norm = (1 + 1e-5) ** -0.5
    cell.weight_ih.data.copy_(layer.input[0].weight.flatten(1) * norm)
    cell.weight_hh.data.copy_(layer.state.weight.flatten(1))
    cell.bias_ih.data.zero_()
    cell.bias_hh.data.copy_(layer.state.bias)
    x = torch.randn(2, 4, 3, 5)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 4)
    state = torch.tanh(pixels @ cell.weight_ih[12:].T)
    for _ in range(3):
        state = cell(pixels, state)
    assert torch.allclose(layer(x).permute(0, 2, 3, 1).reshape(-1, 6), state, atol=1e-5)


def test_a_step_against_its_equations():
    layer = strong(ConvGRU(4, 2, steps=1))
    x, state = torch.randn(1, 4, 5, 6), torch.randn(1, 2, 5, 6)
    seen = layer.input(x)
    of_state = [
        F.conv2d(state, layer.state.weight[i : i + 2], layer.state.bias[i : i + 2], padding=1) for i in (0, 2, 4)
    ]
    reset, update = (torch.sigmoid(seen[:, i : i + 2] + of_state[i // 2]) for i in (0, 2))
    new = torch.tanh(seen[:, 4:] + reset * of_state[2])
    assert torch.allclose(layer.step(seen, state), (1 - update) * new + update * state, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_step_sees_one_pixel_further(steps):
    layer = strong(ConvGRU(1, 2, steps))
    x = torch.zeros(1, 1, 1, 15)
    changed = x.clone()
    changed[..., 7] = 1
    reached = (layer(x) != layer(changed)).any(1).flatten().nonzero().flatten()
    assert (reached.min(), reached.max()) == (7 - 1 - steps, 7 + 1 + steps)


def test_steps_cost_no_weights_and_the_state_stays_bounded():
    assert count_parameters(ConvGRU(4, 6, 2)) == count_parameters(ConvGRU(4, 6, 9))
    assert strong(ConvGRU(4, 6, 50))(10 * torch.randn(1, 4, 5, 5)).abs().max() <= 1
