import pytest
import torch

from modeling import ChannelConv2d, ChannelSet
from modeling.norms import SubsetBatchNorm2d, affine

RGB = ("R", "G", "B")


def test_norm_keeps_sets_apart_and_folds():
    torch.manual_seed(0)
    norm = SubsetBatchNorm2d(RGB, 4)
    rg, b = ChannelSet.parse("RG", RGB), ChannelSet.parse("B", RGB)
    norm.weight.data.uniform_(0.5, 2)
    before = norm.running_mean.clone()
    for _ in range(200):
        norm(5 + 3 * torch.randn(16, 4, 6, 6), rg)
    changed = (norm.running_mean != before).any(1).nonzero().flatten().tolist()
    assert changed == [norm.row(rg)]
    norm.eval()
    x = 5 + 3 * torch.randn(8, 4, 6, 6)
    scale, shift = affine(norm.ordinary(rg))
    assert torch.allclose(norm(x, rg), x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), atol=1e-5)
    assert norm(x, rg).mean().abs() < 0.2 < norm(x, b).mean().abs()
    reference = torch.nn.BatchNorm2d(4)
    reference.weight.data.copy_(norm.weight[norm.row(b)])
    assert torch.allclose(norm.train()(x, b), reference(x), atol=1e-5)
    assert torch.allclose(norm.running_var[norm.row(b)], reference.running_var)


def test_large_vocabularies_share_norms_by_size():
    norm = SubsetBatchNorm2d(tuple("abcdefghij"), 4)
    assert norm.weight.shape == (10, 4)
    assert norm.row(ChannelSet.parse("abc", norm.vocabulary)) == norm.row(ChannelSet.parse("hij", norm.vocabulary))


def test_norms_by_size_serve_sets_that_no_table_holds():
    norm = SubsetBatchNorm2d(RGB, 4, by_size=True)
    assert norm.weight.shape == (3, 4)
    assert norm.row(ChannelSet(("R", "nir"))) == norm.row(ChannelSet(("G", "B"))) == 1
    assert norm.row(ChannelSet((*RGB, "nir"))) == 2


def test_norms_are_told_sets_by_name_as_convolutions_are():
    norm = SubsetBatchNorm2d("red+green+nir", 4)
    assert norm.weight.shape == (7, 4)
    assert norm.row("nir") == norm.row(["nir"]) == norm.row(ChannelSet(("nir",)))
    assert norm.row("nir+red") == norm.row("red+nir")
    by_size = SubsetBatchNorm2d("red+green+nir", 4, by_size=True)
    assert by_size.row("nir") == 0
    with pytest.raises(ValueError, match="unknown channel 'blue'"):
        by_size.row("blue")
    described = SubsetBatchNorm2d(RGB, 4)
    with pytest.raises(ValueError, match="'nir' has been described since"):
        described.row(ChannelSet(("R", "nir")))


def test_a_norm_that_keeps_no_statistics_must_be_given_them():
    torch.manual_seed(0)
    norm = SubsetBatchNorm2d(RGB, 4, track_running_stats=False)
    norm.weight.data.uniform_(0.5, 2)
    x = 5 + 3 * torch.randn(8, 4, 6, 6)
    row = norm.row("RG")
    tracking = SubsetBatchNorm2d(RGB, 4)
    tracking.load_state_dict(norm.state_dict(), strict=False)
    assert torch.allclose(norm(x, "RG"), tracking(x, "RG"))
    assert sorted(norm.state_dict()) == ["bias", "weight"]
    conv = ChannelConv2d(RGB, 4, 3)
    for use in (norm.eval().ordinary, norm.train().ordinary, lambda name: conv.materialize(name, norm)):
        with pytest.raises(ValueError, match="keeps no statistics"):
            use("RG")
    with pytest.raises(ValueError, match="keeps no statistics"):
        norm.eval()(x, "RG")
    given = torch.randn(4), torch.rand(4)
    wanted = torch.nn.functional.batch_norm(x, *given, norm.weight[row], norm.bias[row])
    assert torch.allclose(norm(x, "RG", given), wanted)
    plain = norm.ordinary("RG", given)
    assert torch.allclose(plain(x), wanted)
    plain.running_mean.zero_()
    assert given[0].abs().min() > 0  # it shares no memory
