"""Networks that accept any set of input channels. Importing this needs torch alone."""

from modeling.adapt import AdaptedNet, adapt
from modeling.channels import ChannelSet
from modeling.dynamic_conv import ChannelConv2d
from modeling.norms import SubsetBatchNorm2d

__all__ = ["AdaptedNet", "ChannelConv2d", "ChannelSet", "SubsetBatchNorm2d", "adapt"]
