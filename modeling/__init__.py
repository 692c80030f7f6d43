"""Networks that accept any set of input channels. Importing this needs torch alone."""

from modeling.channels import ChannelSet
from modeling.dynamic_conv import ChannelConv2d

__all__ = ["ChannelConv2d", "ChannelSet"]
