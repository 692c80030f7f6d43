"""Graph convolution on images: positions are nodes, joined to those that look most alike wherever they are.

Source: Han et al., "Vision GNN: An Image is Worth Graph of Nodes" (ViG), arXiv 2206.00272.
"""

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.attention import PositionEncoding
from modeling.precision import uncast

_GROUPS = 4  # of the update, the paper's "multi-head" one
_COUNTED = 256  # as far as bfloat16 counts


@torch.no_grad()
def nearest(nodes: Tensor, count: int) -> Tensor:
    """The nodes most alike to each by their features' direction: first itself, unless others point the same way.

    A node of zeros has no direction, and any neighbours.

    A choice has no gradient. It is made in float32 even under autocast; still, rounding may decide between two
    nodes that are all but equally near, so that one network can answer differently on another machine.

    Args:
        nodes: N×T×C.
        count: how many; all T if there are no more.

    Returns:
        indices, N×T×count, nearest first.
    """
    with uncast(nodes.device):
        directions = F.normalize(nodes.float(), dim=2)
        return (directions @ directions.mT).topk(min(count, nodes.shape[1]), dim=2).indices


class MaxRelativeGraphConv(nn.Module):
    """Each node looks at the largest difference to its neighbours in every feature: h([x_i, max_j (x_j - x_i)]).

    h is a linear map to 2C features, in four groups that hold a feature and its difference together, with
    BatchNorm and GELU behind it. Neighbours are the nearest nodes in the features at hand.
    Source: max-relative graph convolution, Li et al., arXiv 1904.03751, with ViG's grouped update.

    Args:
        features: C, divisible by 2.
        neighbours: of each node, itself included.

    Shape:
        N×C×H×W → N×2C×H×W.
    """

    def __init__(self, features: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.update = nn.Sequential(
            nn.Conv2d(2 * features, 2 * features, 1, groups=_GROUPS, bias=False),
            nn.BatchNorm2d(2 * features),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Find the neighbours, compare, update."""
        nodes = x.flatten(2).mT
        relative = max_relative(nodes, nearest(nodes, self.neighbours))
        pairs = torch.stack([nodes, relative], dim=3).flatten(2)  # x_1, its difference, x_2, its difference, …
        return self.update(pairs.mT.unflatten(2, x.shape[2:]))


def max_relative(nodes: Tensor, neighbours: Tensor) -> Tensor:
    """max_j (x_j - x_i) for each node i over its neighbours j: N×T×C and N×T×k → N×T×C.

    The gradient goes to the neighbour that is largest, the nearest of them where several are. Which one that is
    gets found without gradients, so that what all neighbours hold need not be kept for the backward pass. A node
    that is no number stays so; its neighbours may overlook it.
    """
    if torch.compiler.is_exporting():  # where the map's size, and with it their number, may be left open
        places = neighbours.flatten(1).unsqueeze(2).expand(-1, -1, nodes.shape[2])
        return nodes.gather(1, places).unflatten(1, neighbours.shape[1:]).amax(2) - nodes
    if nodes.requires_grad and torch.is_grad_enabled():
        return nodes.gather(1, _largest(nodes, neighbours)) - nodes
    return reduce(torch.maximum, _neighbours(nodes, neighbours)).view_as(nodes) - nodes


@torch.no_grad()
def _largest(nodes: Tensor, neighbours: Tensor) -> Tensor:
    """Which node among a node's neighbours has the most of a feature: N×T×C, like the nodes."""
    values = _neighbours(nodes, neighbours)
    most = next(values)
    exact = most.dtype if neighbours.shape[2] <= _COUNTED else torch.float32
    place, later = torch.zeros_like(most, dtype=exact), torch.empty_like(most, dtype=exact)
    for j, value in enumerate(values, start=1):
        torch.gt(value, most, out=later)  # as numbers: for truth values torch goes one by one on a CPU
        torch.maximum(place, later.mul_(j), out=place)
        torch.maximum(most, value, out=most)
    return neighbours.gather(2, place.view_as(nodes).long())


def _neighbours(nodes: Tensor, neighbours: Tensor) -> Iterator[Tensor]:
    """Each node's nearest, then each node's second, …: k times (N·T)×C."""
    images, count, _ = nodes.shape
    first = torch.arange(images, device=nodes.device)[:, None, None] * count  # node of each image, among all
    flat = nodes.flatten(0, 1)
    return (flat.index_select(0, rows) for rows in (neighbours + first).flatten(0, 1).unbind(1))


class GraphBlock(nn.Module):
    """Positions, then ViG's grapher and feed-forward network, each with a residual around it.

    The grapher is a graph convolution between two linear maps; without these and the feed-forward network, nodes
    would grow alike. Positions are encoded by a depthwise convolution, where ViG learns one for each place, so
    that the map may have any size.

    Args:
        features: C, divisible by 2.
        neighbours: of each node, itself included; ViG has 9.
        expansion: hidden width of the feed-forward network, in multiples of C.

    Shape:
        N×C×H×W, input and output.
    """

    def __init__(self, features: int, neighbours: int, expansion: int = 4) -> None:
        super().__init__()
        self.position = PositionEncoding(features)
        self.grapher = nn.Sequential(
            *_linear(features, features),
            MaxRelativeGraphConv(features, neighbours),
            *_linear(2 * features, features),
        )
        hidden = expansion * features
        self.ffn = nn.Sequential(*_linear(features, hidden), nn.GELU(), *_linear(hidden, features))
        for module in (*self.grapher.modules(), *self.ffn.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Exchange between nodes, then within each."""
        x = self.position(x)
        x = x + self.grapher(x)
        return x + self.ffn(x)


def _linear(features: int, out_features: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A linear map of every node, and BatchNorm."""
    return nn.Conv2d(features, out_features, 1, bias=False), nn.BatchNorm2d(out_features)
