"""Moments of the images that a convolution sees, from which its norm's statistics follow for any channel set."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.channels import ChannelSet, parse_names
from modeling.precision import uncast


class InputMoments(nn.Module):
    """Mean μ and covariance Σ of the patches p that a convolution without bias reads.

    Its answer is y = w·p. So for every filter and every channel set

        E y = w·μ,    Var y = wᵀΣw,

    where w, μ and Σ are cut down to the set's channels: exactly what a BatchNorm behind the convolution would have
    measured on these patches, border and all, for the kernel as it is now. Images of that very set need never have
    been seen, only each pair of its channels. Pairs may be seen in different images, of cameras with different
    contrast and brightness perhaps. So what is known of a channel is what it was like beside each other one; in a
    set it is taken to be as it was on average beside the others there. A pair that was never seen is taken for
    uncorrelated, which images seldom are: see `unseen`. Before the first image, images are taken for white noise
    of variance 1.

    The moments stay in float32 or better whatever precision the network is brought to: an edge filter's variance
    is a small difference of large moments.

    Args:
        vocabulary: channel names, as of `ChannelConv2d`; C0 of them.
        kernel_size, stride, padding: of the convolution; k.

    Attributes:
        mean: of channel a in images that had b as well, C0×C0×k².
        own: covariance of a with itself in images that had b as well, C0×C0×k²×k².
        covariance: of channels a and b, C0×C0×k²×k².
        count: how often each pair was seen, C0×C0.
    """

    IMAGES = 4  # of a batch that count: the rest would cost time and say little more
    WINDOW = 200  # updates after which old ones fade, as the images of training may change
    FLOOR = 0.01  # of a variance, in parts of what it would be if channels were uncorrelated

    def __init__(self, vocabulary: str | Sequence[str], kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.vocabulary = parse_names(vocabulary)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.stand_ins: dict[str, str] = {}
        channels, taps = len(self.vocabulary), kernel_size**2
        self.register_buffer("mean", torch.zeros(channels, channels, taps))
        self.register_buffer("own", torch.eye(taps).expand(channels, channels, -1, -1).clone())
        self.register_buffer("covariance", _by_pairs(torch.eye(channels * taps), channels).contiguous())
        self.register_buffer("count", torch.zeros(channels, channels))

    def describe(self, name: str, like: str) -> None:
        """Let a channel outside the vocabulary have the moments of one within."""
        self.stand_ins[name] = like

    def unseen(self, channels: ChannelSet) -> list[tuple[str, str]]:
        """Pairs of a set's channels that were never in an image together; channels that are not known aside."""
        alike = [self.stand_ins.get(name, name) for name in channels]
        at = [self.vocabulary.index(name) for name in alike if name in self.vocabulary]
        pairs = [(i, j) for n, i in enumerate(at) for j in at[n:] if not self.count[i, j]]
        return list(dict.fromkeys((self.vocabulary[i], self.vocabulary[j]) for i, j in pairs))

    @torch.no_grad()
    def update(self, images: Tensor, channels: ChannelSet) -> None:
        """Count in the first `IMAGES` of a batch, N×|S|×H×W, in any order; they are weighed alike up to `WINDOW`.

        Raises:
            ValueError: a channel that the vocabulary lacks.
        """
        known = ChannelSet.parse(channels, self.vocabulary)
        if len(images) == 0:
            return
        at = torch.tensor(known.indices(self.vocabulary), device=images.device)
        with uncast(images.device):
            sample = images[: self.IMAGES].to(self.mean.dtype)
            patches = F.unfold(sample, self.kernel_size, padding=self.padding, stride=self.stride)
            flat = patches.transpose(0, 1).flatten(1)  # |S|k²×P
            mean = flat.mean(1, keepdim=True)
            covariance = _by_pairs((flat - mean) @ (flat - mean).T / flat.shape[1], len(at))
        pairs = at[:, None], at
        self.count[pairs] += 1
        rate = 1 / self.count[pairs].clamp(max=self.WINDOW)
        away = mean.view(len(at), 1, -1) - self.mean[pairs]  # of a, from its mean in images that had b
        self.mean[pairs] += rate[..., None] * away
        rate = rate[..., None, None]
        apart = (1 - rate) * away[..., :, None]
        own = covariance.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[:, None] + apart * away[..., None, :]
        covariance = covariance + apart * away.transpose(0, 1)[..., None, :]
        self.own[pairs] = torch.lerp(self.own[pairs], own, rate)
        self.covariance[pairs] = torch.lerp(self.covariance[pairs], covariance, rate)

    @torch.no_grad()
    def statistics(self, kernel: Tensor, channels: ChannelSet) -> tuple[Tensor, Tensor]:
        """Mean and variance of each filter's answer, (O,) and (O,), in the precision of the moments.

        Moments of different images need not fit together, and a filter that opposes channels may then seem to have
        no variance at all. So no variance is less than `FLOOR` of what it were for uncorrelated channels.

        Args:
            kernel: O×|S|×k×k.
            channels: that the kernel is for; described ones count as those that they are like.

        Raises:
            ValueError: a channel that is neither known nor described.
        """
        at = self._rows(channels).to(self.mean.device)
        pairs = at[:, None], at
        with uncast(kernel.device):
            filters = kernel.to(self.mean.dtype).flatten(2)  # O×|S|×k²
            share = self._company(at)
            mean = torch.einsum("ab,abt,oat->o", share, self.mean[pairs], filters)
            own = torch.einsum("ab,abtu->atu", share, self.own[pairs])
            alone = torch.einsum("oat,atu,oau->o", filters, own, filters)
            power, here = _trace(own), _trace(self.own[pairs])
            contrast = (power[:, None] / here.clamp(min=torch.finfo(here.dtype).tiny)).sqrt()
            scale = contrast * contrast.T * (1 - torch.eye(len(at), device=at.device))
            covariance = self.covariance[pairs] * scale[..., None, None]
            crossed = torch.einsum("oat,abtu,obu->o", filters, covariance, filters)
        return mean, torch.maximum(alone + crossed, self.FLOOR * alone)

    def _company(self, at: Tensor) -> Tensor:
        """How much each channel (row) is taken to be as it was beside each other one (column); rows sum to 1."""
        beside = ((self.count[at[:, None], at] > 0) & (at[:, None] != at)).to(self.mean.dtype)
        nobody = beside.sum(1, keepdim=True) == 0
        share = torch.where(nobody, torch.eye(len(at), device=at.device, dtype=beside.dtype), beside)
        return share / share.sum(1, keepdim=True)

    def _rows(self, channels: ChannelSet) -> Tensor:
        """Where a set's channels, or those that they are like, stand in the vocabulary."""
        alike = [self.stand_ins.get(name, name) for name in channels]  # two may be like the same one
        if unknown := set(alike) - set(self.vocabulary):
            raise ValueError(f"no moments of channel {unknown.pop()!r}; tell by describe() which it is like")
        return torch.tensor([self.vocabulary.index(name) for name in alike])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InputMoments":
        """Move the moments, and keep their precision unless it becomes better."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if torch.finfo(moved.dtype).bits < torch.finfo(buffer.dtype).bits:
                lost = buffer.is_meta or moved.is_meta
                setattr(self, name, moved.to(buffer.dtype) if lost else buffer.to(moved.device))
        return self


def _by_pairs(moments: Tensor, channels: int) -> Tensor:
    """|S|k²×|S|k² → |S|×|S|×k²×k²."""
    return moments.view(channels, -1, channels, moments.shape[1] // channels).transpose(1, 2)


def _trace(matrices: Tensor) -> Tensor:
    """…×k²×k² → …"""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
