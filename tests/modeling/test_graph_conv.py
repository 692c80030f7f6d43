import torch
from torch import nn
from torch.nn import functional as F

from modeling.graph_conv import GraphBlock, MaxRelativeGraphConv, max_relative, nearest


def test_nearest_against_every_pair():
    nodes = torch.randn(2, 9, 5)
    found = nearest(nodes, 4)
    for image in range(2):
        for i in range(9):
            likeness = [F.cosine_similarity(nodes[image, i], nodes[image, j], dim=0).item() for j in range(9)]
            assert found[image, i].tolist() == sorted(range(9), key=lambda j: -likeness[j])[:4]
    assert (found[:, :, 0] == torch.arange(9)).all()  # itself


def test_there_may_be_fewer_nodes_than_neighbours():
    assert nearest(torch.randn(1, 4, 5), 9).sort(2).values.tolist() == [[list(range(4))] * 4]


def test_largest_difference_against_every_pair():
    nodes, neighbours = torch.randn(2, 6, 3), torch.randint(6, (2, 6, 4))
    found = max_relative(nodes, neighbours)
    for image in range(2):
        for i in range(6):
            for c in range(3):
                differences = [nodes[image, j, c] - nodes[image, i, c] for j in neighbours[image, i]]
                assert torch.isclose(found[image, i, c], max(differences), atol=1e-6)


def test_exports_compute_the_same(monkeypatch):
    nodes, neighbours = torch.randn(2, 6, 3), torch.randint(6, (2, 6, 4))
    found = max_relative(nodes, neighbours)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr("modeling.graph_conv._largest", None)  # whose loop wants a fixed number of neighbours
    assert torch.equal(max_relative(nodes, neighbours), found)


def test_gradient_goes_to_the_largest_neighbour():
    nodes, neighbours = torch.randn(2, 6, 3, requires_grad=True), torch.randint(6, (2, 6, 4))
    upstream = torch.randn(2, 6, 3)
    wanted = -upstream
    for image in range(2):
        for i in range(6):
            for c in range(3):
                largest = max(neighbours[image, i].tolist(), key=lambda j: nodes[image, j, c].item())
                wanted[image, largest, c] += upstream[image, i, c]
    assert torch.allclose(torch.autograd.grad(max_relative(nodes, neighbours), nodes, upstream)[0], wanted)


def test_of_neighbours_alike_the_nearest_gets_the_gradient():
    nodes = torch.tensor([[[0.0], [2.0], [2.0]]], requires_grad=True)
    found = max_relative(nodes, torch.tensor([[[0, 2, 1], [1, 1, 1], [2, 2, 2]]]))
    assert torch.autograd.grad(found[0, 0, 0], nodes)[0].flatten().tolist() == [-1, 0, 1]


def test_many_neighbours_are_told_apart_in_half_precision():
    nodes = torch.randn(1, 600, 3).bfloat16()
    nodes[0, 511] = 9
    nodes.requires_grad_()
    found = max_relative(nodes, torch.arange(600).expand(1, 600, 600))
    gradient = torch.autograd.grad(found[0, 0].sum(), nodes)[0]
    assert gradient[0, 511].tolist() == [1, 1, 1] and gradient[0, 0].tolist() == [-1, -1, -1]


def test_inference_and_training_find_the_same():
    nodes, neighbours = torch.randn(2, 6, 3), torch.randint(6, (2, 6, 4))
    assert torch.equal(max_relative(nodes.clone().requires_grad_(), neighbours), max_relative(nodes, neighbours))


def test_graph_convolution_against_one_map_for_each_group():
    conv = MaxRelativeGraphConv(6, neighbours=3).eval()
    x = torch.randn(1, 6, 2, 4)
    nodes = x[0].flatten(1).T  # 8×6
    relative = max_relative(nodes[None], nearest(nodes[None], 3))[0]
    outputs = []
    for group, weight in enumerate(conv.update[0].weight.flatten(1).chunk(4)):  # of three inputs and outputs each
        pairs = [value[:, c] for c in range(6) for value in (nodes, relative)][3 * group : 3 * group + 3]
        outputs.append(torch.stack(pairs, 1) @ weight.T)
    wanted = F.gelu(torch.cat(outputs, 1) / (1 + 1e-5) ** 0.5)
    assert torch.allclose(conv(x)[0].flatten(1).T, wanted, atol=1e-5)


def test_block_is_vigs_grapher_and_feed_forward_network_with_residuals():
    """ViG's code, written anew: fc, graph convolution, fc, and x + …; then fc, GELU, fc, and x + …"""
    block = GraphBlock(6, neighbours=3).eval()
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.running_mean)
    x = torch.randn(2, 6, 3, 4)

    def linear(x, conv, norm):
        y = torch.einsum("nchw,oc->nohw", x, conv.weight[:, :, 0, 0]) - norm.running_mean[:, None, None]
        return y / (1 + 1e-5) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]

    fc1, fc1_norm, conv, fc2, fc2_norm = block.grapher
    up, up_norm, _, down, down_norm = block.ffn
    positions = F.conv2d(x, block.position.conv.weight, block.position.conv.bias, padding=1, groups=6)
    x = x + positions
    y = linear(conv(linear(x, fc1, fc1_norm)), fc2, fc2_norm) + x
    wanted = linear(F.gelu(linear(y, up, up_norm)), down, down_norm) + y
    assert torch.allclose(block(x - positions), wanted, atol=1e-4)


def test_nodes_have_no_order_but_for_their_positions():
    block, order = GraphBlock(6, neighbours=3).eval(), torch.randperm(12)
    nn.init.zeros_(block.position.conv.weight)
    x = torch.randn(2, 6, 12, 1)
    assert torch.allclose(block(x)[:, :, order], block(x[:, :, order]), atol=1e-5)
    assert torch.allclose(block(x).view(2, 6, 3, 4), block(x.view(2, 6, 3, 4)), atol=1e-5)


def test_equal_nodes_have_nothing_to_tell_each_other():
    nodes = torch.ones(1, 6, 3, requires_grad=True)
    relative = max_relative(nodes, nearest(nodes, 4))
    assert not relative.any()
    relative.sum().backward()
    assert nodes.grad.isfinite().all()
    assert nearest(torch.zeros(1, 6, 3), 4).shape == (1, 6, 4)


def test_neighbours_are_chosen_in_full_precision():
    nodes = torch.randn(1, 64, 16)
    found = nearest(nodes, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(nodes, 9), found)
    assert torch.equal(nearest(nodes * torch.rand(1, 64, 1), 9), found)  # only directions count
