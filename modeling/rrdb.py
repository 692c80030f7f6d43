"""The residual-in-residual dense block (RRDB).

Source: Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", arXiv 1809.00219, §3.1.
"""

import torch
from torch import Tensor, nn

SCALE = 0.2  # of residuals; the paper's β
_CONVS = 5


class DenseBlock(nn.Module):
    """x + 0.2 · f(x), with five 3×3 convolutions in f, each of which sees the input and all outputs before.

    The first four add `growth` features each and have a LeakyReLU of slope 0.2 behind them, the last returns to
    the input's number and has none. There is no norm inside; instead weights start at a tenth of He's deviation,
    as in the paper, so that the block starts close to the identity.

    Args:
        features: C.
        growth: what each of the first four convolutions adds; the paper's is 32 for 64 features.

    Shape:
        N×C×H×W, input and output.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * (_CONVS - 1) + [features]
        self.convs = nn.ModuleList(
            nn.Conv2d(features + i * growth, width, 3, padding=1) for i, width in enumerate(widths)
        )
        self.activation = nn.LeakyReLU(0.2, inplace=True)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Grow, then return to the input's width."""
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, self.activation(conv(seen))], dim=1)
        return x + SCALE * self.convs[-1](seen)


class RRDB(nn.Module):
    """x + 0.2 · f(x), with three dense blocks in f: fifteen convolutions one after the other.

    Args:
        features, growth: see `DenseBlock`.

    Shape:
        N×C×H×W, input and output.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """A residual around residuals."""
        return x + SCALE * self.dense(x)
