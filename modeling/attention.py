"""Self-attention between all positions of a feature map of any size.

Sources: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762; pre-norm and GELU as in Dosovitskiy et al.,
"An Image is Worth 16x16 Words", arXiv 2010.11929.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class PositionEncoding(nn.Module):
    """x + a depthwise 3×3 convolution of x: what is around a position tells where it is, at any size of the map.

    Zero padding tells it where the borders are.
    Source: Chu et al., "Conditional Positional Encodings for Vision Transformers", arXiv 2102.10882.

    Args:
        features: C.

    Shape:
        N×C×H×W, input and output.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1, groups=features)

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding."""
        return x + self.conv(x)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of tokens to one another.

    Args:
        features: C.
        heads: must divide C.

    Shape:
        N×T×C, input and output.

    Raises:
        ValueError: features do not divide by heads.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"{features} features do not divide by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, head by head, and project what was gathered."""
        queries, keys, values = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # N×heads×T×c
        gathered = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Positions, then attention and an MLP, each behind a LayerNorm and with a residual around both.

    Args:
        features: C.
        heads: of the attention.
        expansion: the MLP's hidden width, in multiples of C.

    Shape:
        N×C×H×W, input and output.
    """

    def __init__(self, features: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.position = PositionEncoding(features)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attention = SelfAttention(features, heads)
        hidden = expansion * features
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
        for layer in (self.attention.qkv, self.attention.proj, self.mlp[0], self.mlp[2]):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Positions become tokens, and positions again."""
        x = self.position(x)
        tokens = x.flatten(2).mT
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.mT.unflatten(2, x.shape[2:])
