"""Norms behind a convolution that takes any channel set."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, parse_names

Statistics = tuple[Tensor, Tensor]  # mean and variance of each feature, (O,) and (O,)


class SubsetBatchNorm2d(nn.Module):
    """BatchNorm with a gain, shift and running statistics of its own for each channel set.

    A luminance filter needs 2.85 times its gain on R alone and an opponent filter half, so one gain for all
    sets cannot serve. Up to `MAX_TABLE` channels every set has a row; beyond, sets of one size share a row. The
    rows are slices of single tensors, so that under DDP every parameter takes part in every step. Sets that were
    never seen have statistics where `modeling.moments.InputMoments` works them out.

    Like `nn.BatchNorm2d` it takes the statistics of each rank's own images, and DDP hands on those of the first;
    `nn.SyncBatchNorm.convert_sync_batchnorm` leaves it as it is. Give all ranks the same channel set in a step, or
    the first rank's statistics lack the others' sets. Gains and shifts are tables, two-dimensional: leave them out
    of weight decay by name.

    Args:
        vocabulary: channel names, as of `ChannelConv2d`.
        features: O.
        eps, momentum: as in `nn.BatchNorm2d`.
        by_size: let sets of one size share a row however few channels there are; needed where channels outside
            the vocabulary are described later, whose sets no table can hold.
        track_running_stats: if not, none are kept, and inference must be given statistics, see `InputMoments`.

    Shape:
        N×O×H×W, input and output.

    Raises:
        ValueError: a channel that the vocabulary lacks; no statistics at inference where none are kept.
    """

    MAX_TABLE = 6  # channels: 63 sets

    def __init__(
        self,
        vocabulary: str | Sequence[str],
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        by_size: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.vocabulary, self.eps, self.momentum = parse_names(vocabulary), eps, momentum
        count = len(self.vocabulary)
        self.by_size = by_size or count > self.MAX_TABLE
        rows = count if self.by_size else 2**count - 1
        self.weight = nn.Parameter(torch.ones(rows, features))
        self.bias = nn.Parameter(torch.zeros(rows, features))
        self.register_buffer("running_mean", torch.zeros(rows, features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(rows, features) if track_running_stats else None)

    def row(self, channels: str | Sequence[str] | ChannelSet) -> int:
        """Which row of the tables a channel set uses; sets with described channels come as `ChannelSet`."""
        if not isinstance(channels, ChannelSet):
            channels = ChannelSet.parse(channels, self.vocabulary)
        if self.by_size:  # described channels can make a set larger than the vocabulary
            return min(len(channels), len(self.vocabulary)) - 1
        if unknown := set(channels) - set(self.vocabulary):
            raise ValueError(
                f"channel {unknown.pop()!r} has been described since: no norm but those by size have its sets"
            )
        return channels.mask(self.vocabulary) - 1

    def forward(
        self, x: Tensor, channels: str | Sequence[str] | ChannelSet, statistics: Statistics | None = None
    ) -> Tensor:
        """Normalise with the statistics of this channel set, at inference with those given, if any."""
        row = self.row(channels)
        untracked = self.training and self.running_mean is None
        mean, var = (None, None) if untracked else self._statistics(row, None if self.training else statistics)
        return F.batch_norm(
            x,
            mean,
            var,
            self.weight[row],
            self.bias[row],
            self.training,
            self.momentum,
            self.eps,
        )

    @torch.no_grad()
    def ordinary(
        self, channels: str | Sequence[str] | ChannelSet, statistics: Statistics | None = None
    ) -> nn.BatchNorm2d:
        """An ordinary BatchNorm that computes the same for this channel set; it shares no memory."""
        row = self.row(channels)
        norm = nn.BatchNorm2d(self.weight.shape[1], self.eps, self.momentum).to(self.weight)
        norm.weight.copy_(self.weight[row])
        norm.bias.copy_(self.bias[row])
        mean, var = self._statistics(row, statistics)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        return norm.train(self.training)

    def _statistics(self, row: int, given: Statistics | None) -> Statistics:
        """Those given, or else this row's running ones."""
        if given is not None:
            return given[0].to(self.weight.dtype), given[1].to(self.weight.dtype)
        if self.running_mean is not None:
            return self.running_mean[row], self.running_var[row]
        raise ValueError("this norm keeps no statistics: give it those that InputMoments works out")


class SharedBatchNorm2d(nn.BatchNorm2d):
    """An ordinary BatchNorm, the same for all channel sets, behind the interface of `SubsetBatchNorm2d`.

    Shape:
        N×O×H×W, input and output.
    """

    def forward(self, x: Tensor, channels: ChannelSet | None = None) -> Tensor:
        """Normalise, whatever the channel set."""
        return super().forward(x)

    @torch.no_grad()
    def ordinary(self, channels: ChannelSet | None = None) -> nn.BatchNorm2d:
        """An ordinary BatchNorm that computes the same; it shares no memory."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, self.momentum).to(self.weight)
        norm.load_state_dict(self.state_dict())
        return norm.train(self.training)


@torch.no_grad()
def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a norm amounts to at inference: scale and shift, each of shape (O,)."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
