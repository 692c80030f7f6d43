"""Optimizer and learning rate."""

import math

import torch
from torch import nn

from training.config import Optim


def build_optimizer(model: nn.Module, settings: Optim) -> torch.optim.Optimizer:
    """timm's optimizer of the settings' name, with weight decay on the weights of layers only.

    Weight decay on a norm's gains, on biases or on embeddings only fights the loss; the tables of the
    any-channel stem are recognised by their names, since they have two or more dimensions as weights have.
    """
    from timm.optim import create_optimizer_v2

    layers, tables, free = [], [], []
    for module in model.modules():
        plain = isinstance(module, nn.Conv2d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            group = layers if plain and name == "weight" else tables if name in ("templates", "mixing") else free
            group.append(parameter)
    muon = settings.optimizer == "muon"
    other = {"use_fallback": True} if muon else {}  # orthogonal steps are for the matrices of layers
    groups = [
        {"params": layers, "weight_decay": settings.weight_decay},
        {"params": tables, "weight_decay": settings.weight_decay, **other},
        {"params": free, "weight_decay": 0.0, **other},
    ]
    name = "nmuon" if muon else settings.optimizer  # with Nesterov momentum, as sgd has it
    return create_optimizer_v2(groups, opt=name, lr=settings.lr, momentum=settings.momentum)


def learning_rate(settings: Optim, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` of `steps`, both counted from 0: warm-up, then decay to 0."""
    warmup = min(settings.warmup_epochs * steps_per_epoch, steps - 1)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return settings.lr * _DECAY[settings.decay](done)


_DECAY = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
