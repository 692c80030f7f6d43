"""ResNet-10, -18 and -34 on any stem. The body is torchvision's own, so results compare with everybody's.

Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from modeling.channels import ChannelSet
from modeling.dynamic_conv import Channels
from modeling.stems import Stem
from modeling.two_layer import TwoLayerBody

STEM_FEATURES, STEM_KERNEL, STEM_STRIDE = 64, 7, 2
_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}  # in each of four stages


class ChannelNet(nn.Module):
    """A stem that takes any channel set, and a body that never knows how many there were."""

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
        features = self.stem.groups(x, [self.stem.parse(chosen) for chosen in channels])
        return self.body(features.contiguous(memory_format=torch.channels_last))

    def materialize(self, channels: Channels = None) -> nn.Sequential:
        """The network for one channel set with a plain stem, in inference mode; it shares no memory with this.

        The body of a two-layer network is merged, see `TwoLayerBody.merged`.
        """
        stem = self.stem.materialize(self.stem.parse(channels))
        body = self.body.merged() if isinstance(self.body, TwoLayerBody) else copy.deepcopy(self.body)
        plain = nn.Sequential(OrderedDict(stem=stem, body=body))
        return plain.eval().requires_grad_(False)


def resnet_body(name: str, classes: int) -> nn.Sequential:
    """Everything of a ResNet behind its first norm: N×64×H×W → N×classes.

    Args:
        name: "resnet10", "resnet18" or "resnet34".
        classes: number of logits.
    """
    network = ResNet(BasicBlock, _BLOCKS[name], num_classes=classes)
    parts = ("relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
    layers = OrderedDict((part, getattr(network, part)) for part in parts)
    return nn.Sequential(layers | OrderedDict(flatten=nn.Flatten(1), fc=network.fc))
