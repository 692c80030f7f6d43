"""Optimizer and learning rate."""

import math
from typing import Any

import torch
from torch import Tensor, nn

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
    fused = {"fused": True} if name in ("sgd", "adamw") else {}  # one pass over the memory in place of several
    optimizer = create_optimizer_v2(groups, opt=name, lr=settings.lr, momentum=settings.momentum, **fused)
    if fused:
        optimizer.register_step_pre_hook(_align)
    return optimizer


def _align(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Lay out gradients and moments as their parameters are.

    What is fused goes through them as they lie in memory, and on a CPU does not look whether they lie alike.
    Autograd sees to it for gradients; moments from a checkpoint may be of another memory format.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and _layout(parameter.grad) != _layout(parameter):
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                same = not isinstance(value, Tensor) or value.shape != parameter.shape
                if not same and _layout(value) != _layout(parameter):
                    state[name] = torch.empty_like(parameter).copy_(value)


def _layout(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one entry; those of the others mean nothing."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


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
