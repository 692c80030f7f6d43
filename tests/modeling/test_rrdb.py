import torch
from torch.nn import functional as F

from modeling.cost import count_parameters
from modeling.rrdb import RRDB, DenseBlock


def dense_by_hand(x, block):
    outputs = [x]
    for i, conv in enumerate(block.convs):
        y = F.conv2d(torch.cat(outputs, 1), conv.weight, conv.bias, padding=1)
        outputs.append(torch.where(y > 0, y, 0.2 * y) if i < 4 else y)
    return x + 0.2 * outputs[-1]


def strong(block):
    """Weights large enough for every convolution to matter."""
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def test_dense_block_against_the_paper():
    block = strong(DenseBlock(6, 3))
    x = torch.randn(2, 6, 5, 7)
    assert torch.allclose(block(x), dense_by_hand(x, block), atol=1e-5)
    assert [conv.in_channels for conv in block.convs] == [6, 9, 12, 15, 18]
    assert [conv.out_channels for conv in block.convs] == [3, 3, 3, 3, 6]


def test_rrdb_is_a_residual_around_three_residual_blocks():
    block = strong(RRDB(6, 3))
    x = torch.randn(2, 6, 5, 7)
    y = x
    for dense in block.dense:
        y = dense_by_hand(y, dense)
    assert torch.allclose(block(x), x + 0.2 * y, atol=1e-5)


def test_parameters_of_the_published_block():
    """ESRGAN's RRDB: 64 features, growth 32."""
    weights = 9 * sum((64 + 32 * i) * 32 for i in range(4)) + 9 * (64 + 4 * 32) * 64
    assert count_parameters(RRDB(64, 32)) == 3 * (weights + 4 * 32 + 64)


def test_weights_start_at_a_tenth_of_hes_deviation():
    for conv in DenseBlock(64, 32).convs:
        fan_in = conv.weight[0].numel()
        assert abs(conv.weight.std() / (0.1 * (2 / fan_in) ** 0.5) - 1) < 0.05
        assert not conv.bias.any()


def test_starts_close_to_a_multiple_of_the_identity():
    x = torch.randn(1, 16, 8, 8)
    assert (RRDB(16, 8)(x) - 1.2 * x).std() < 0.02


def test_input_is_left_alone():
    x = torch.randn(1, 6, 5, 5)
    before = x.clone()
    RRDB(6, 3)(x)
    assert torch.equal(x, before)
