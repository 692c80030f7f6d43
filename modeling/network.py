"""ChannelNet: a stem and a body."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling.channels import ChannelSet
from modeling.dynamic_conv import Channels
from modeling.merge import anneal, merged
from modeling.stems import Stem


class ChannelNet(nn.Module):
    """A stem that takes any channel set, and a body that never knows how many there were.

    Args:
        stem: N×|S|×H×W and a channel set → N×O×H'×W'.
        body: N×O×H'×W' → N×classes.
    """

    def __init__(self, stem: Stem, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = stem, body

    def forward(self, x: Tensor | Sequence[Tensor], channels: Channels | Sequence[ChannelSet] = None) -> Tensor:
        """Logits, N×classes.

        Args:
            x: N×|S|×H×W, or a list of such groups, each with a channel set of its own; the groups meet behind
                the stem, so that the body's BatchNorm sees their mixture.
            channels: the channel set of x, or one for each group; all channels if None.
        """
        if isinstance(x, Tensor):
            return self.body(self.stem(x, self.stem.parse(channels)))
        sets = [None] * len(x) if channels is None else channels
        features = self.stem.groups(x, [self.stem.parse(chosen) for chosen in sets])
        return self.body(features.contiguous(memory_format=torch.channels_last))

    def anneal(self, progress: float) -> None:
        """Called before each training step with the part of the annealing that is over, 0 to 1 and beyond.

        It is for stems that attend to their templates, and for bodies that are trained deeper than they shall be.
        """
        self.stem.anneal(progress)
        anneal(self.body, progress)

    def materialize(self, channels: Channels = None, *, fold: bool = True) -> nn.Sequential:
        """The network for one channel set with a plain stem, in inference mode; it shares no memory with this.

        Args:
            channels: the set, all channels if None.
            fold: norms, and what was there for training only, into convolutions, see `modeling.merge`; else they
                stay, for whoever wants to change the norms' statistics.
        """
        chosen = self.stem.parse(channels)
        stem = self.stem.materialize(chosen) if fold else self.stem.unfolded(chosen)
        body = merged(self.body) if fold else copy.deepcopy(self.body)
        plain = nn.Sequential(OrderedDict(stem=stem, body=body))
        return plain.eval().requires_grad_(False)
