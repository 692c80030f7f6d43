"""Optimizer and learning rate."""

import math

import torch
from torch import nn

from training.config import Optim


def build_optimizer(model: nn.Module, settings: Optim) -> torch.optim.Optimizer:
    """SGD with weight decay on the weights of plain layers only.

    Weight decay on a norm's gains, on biases or on embeddings only fights the loss; the tables of the
    any-channel stem are recognised by their names, since they have two or more dimensions as weights have.
    """
    decayed, free = [], []
    for module in model.modules():
        plain = isinstance(module, nn.Conv2d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            decays = name in ("templates", "mixing") or (plain and name == "weight")
            (decayed if decays else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True)


def learning_rate(settings: Optim, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` of `steps`, both counted from 0: warm-up, then cosine to 0."""
    warmup = min(settings.warmup_epochs * steps_per_epoch, steps - 1)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
