"""The bodies of ResNet-10, -18 and -34. They are torchvision's own, so results compare with everybody's.

Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from modeling.merge import NORMS_BEHIND

STEM_FEATURES, STEM_KERNEL, STEM_STRIDE = 64, 7, 2
_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}  # in each of four stages
NORMS_BEHIND[BasicBlock] = {"conv1": "bn1", "conv2": "bn2"}


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
