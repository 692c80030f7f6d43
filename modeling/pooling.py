"""From a feature map of any size to one vector for each image: what the head of a network looks at."""

from typing import Literal

import torch
from torch import Tensor, nn

from modeling.precision import uncast

Pooling = Literal["mean", "mean-std", "covariance"]


class MeanPool(nn.Module):
    """The mean of each feature over all positions.

    Args:
        features: C.

    Shape:
        N×C×H×W → N×C.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = features

    def forward(self, x: Tensor) -> Tensor:
        """Average over positions."""
        return x.mean((2, 3))


class MeanStdPool(nn.Module):
    """Mean and standard deviation of each feature: how much of it there is, and how unevenly it is spread.

    Source: statistics pooling of x-vectors, Snyder et al., ICASSP 2018.

    Args:
        features: C.
        eps: added to the variance, so that a feature which is the same everywhere has a finite gradient.

    Shape:
        N×C×H×W → N×2C. Taken in float32 at least: a variance is a difference of close numbers.
    """

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.out_features, self.eps = 2 * features, eps

    def forward(self, x: Tensor) -> Tensor:
        """Means, then deviations."""
        precise = _precise(x)
        mean = precise.mean((2, 3), keepdim=True)
        variance = (precise - mean).square().mean((2, 3))  # `torch.var_mean` is slow on small maps on a CPU
        return torch.cat([mean.flatten(1), (variance + self.eps).sqrt()], dim=1).to(x.dtype)


class CovariancePool(nn.Module):
    """The square root of the features' covariance: which features occur together.

    The root is what makes covariances good features: it evens out their eigenvalues, of which a few would drown
    the rest. A 1×1 convolution, BatchNorm and ReLU come first, since a covariance has C² entries. Theirs is a
    weight operation of its own, which makes a network one layer deeper; the covariance and its root are products
    without weights. On fewer positions than features, as on the 4×4 that a 64 px image leaves, a covariance has
    not full rank and says less than the paper's.
    Source: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square
    Root Normalization" (iSQRT-COV), arXiv 1712.01034.

    Args:
        features: C.
        reduced: D, number of features whose covariance is taken; the paper's is 256 on 14×14 positions.
        iterations: of the square root; the paper's is 5.
        eps: added to the covariance's diagonal, so that an even image has a finite gradient.

    Shape:
        N×C×H×W → N×D(D+1)/2, the upper triangle with the diagonal; taken in float32 at least.
    """

    def __init__(self, features: int, reduced: int = 64, iterations: int = 5, eps: float = 1e-5) -> None:
        super().__init__()
        self.iterations, self.eps = iterations, eps
        conv = nn.Conv2d(features, reduced, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.reduce = nn.Sequential(conv, nn.BatchNorm2d(reduced), nn.ReLU(inplace=True))
        rows, columns = torch.triu_indices(reduced, reduced)
        self.register_buffer("upper", rows * reduced + columns, persistent=False)
        self.out_features = len(self.upper)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, take the covariance, and its root."""
        x = self.reduce(x)
        with uncast(x.device):
            root = matrix_sqrt(covariance(_precise(x), self.eps), self.iterations)
        return root.flatten(1)[:, self.upper].to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def covariance(x: Tensor, eps: float) -> Tensor:
    """Covariance of the features over positions, plus eps on the diagonal: N×C×H×W → N×C×C."""
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    return x @ x.mT / x.shape[2] + eps * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def matrix_sqrt(matrix: Tensor, iterations: int) -> Tensor:
    """Square roots of positive definite matrices by coupled Newton–Schulz iterations: matrix products only.

    Small eigenvalues converge last: with few iterations theirs come out too small, and their gradients stay
    finite.

    Args:
        matrix: N×D×D, symmetric with a positive trace.
        iterations: 1 or more.

    Returns:
        N×D×D.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root, inverse = matrix / trace, identity.expand_as(matrix)  # eigenvalues in (0, 1], where it converges
    for _ in range(iterations):
        step = 0.5 * (3 * identity - inverse @ root)
        root, inverse = root @ step, step @ inverse
    return root * trace.sqrt()


POOLINGS: dict[Pooling, type[nn.Module]] = {
    "mean": MeanPool,
    "mean-std": MeanStdPool,
    "covariance": CovariancePool,
}
