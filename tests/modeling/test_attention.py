import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling.attention import AttentionBlock, PositionEncoding, SelfAttention


def strong(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def copy_into(attention: nn.MultiheadAttention, ours: SelfAttention) -> None:
    attention.in_proj_weight.data.copy_(ours.qkv.weight)
    attention.in_proj_bias.data.copy_(ours.qkv.bias)
    attention.out_proj.load_state_dict(ours.proj.state_dict())


def test_attention_against_torch():
    ours, reference = strong(SelfAttention(12, heads=3)), nn.MultiheadAttention(12, 3, batch_first=True)
    copy_into(reference, ours)
    x = torch.randn(2, 10, 12)
    assert torch.allclose(ours(x), reference(x, x, x)[0], atol=1e-5)


def test_attention_does_not_know_the_order():
    attention, x, order = strong(SelfAttention(12, heads=3)), torch.randn(2, 10, 12), torch.randperm(10)
    assert torch.allclose(attention(x)[:, order], attention(x[:, order]), atol=1e-5)


def test_block_is_torchs_encoder_layer_behind_the_positions():
    ours = strong(AttentionBlock(12, heads=3)).eval()
    reference = nn.TransformerEncoderLayer(
        12, 3, dim_feedforward=48, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    copy_into(reference.self_attn, ours.attention)
    for theirs, layer in [("linear1", ours.mlp[0]), ("linear2", ours.mlp[2])]:
        getattr(reference, theirs).load_state_dict(layer.state_dict())
    for name in ("norm1", "norm2"):
        getattr(reference, name).load_state_dict(getattr(ours, name).state_dict())
    x = torch.randn(2, 12, 3, 5)
    tokens = ours.position(x).flatten(2).transpose(1, 2)
    wanted = reference(tokens).transpose(1, 2).reshape(2, 12, 3, 5)
    assert torch.allclose(ours(x), wanted, atol=1e-4)


def test_positions_are_a_depthwise_convolution_that_feels_the_border():
    position = strong(PositionEncoding(3))
    x = torch.ones(1, 3, 6, 6)
    found = position(x)
    for feature in range(3):
        kernel, bias = position.conv.weight[feature : feature + 1], position.conv.bias[feature : feature + 1]
        wanted = 1 + F.conv2d(x[:, :1], kernel, bias, padding=1)
        assert torch.allclose(found[:, feature : feature + 1], wanted, atol=1e-6)
    inside, corner = found[0, :, 1:-1, 1:-1], found[0, :, 0, 0]
    assert torch.allclose(inside, inside[:, :1, :1].expand_as(inside), atol=1e-6)
    assert not torch.allclose(corner, inside[:, 0, 0], atol=1e-3)


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="10 features do not divide by 3 heads"):
        SelfAttention(10, 3)
