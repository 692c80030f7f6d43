"""DeepSpeed ZeRO: its settings, and what it divides put together again; only its benchmark uses it too.

A checkpoint holds weights and optimizer state whole, in the very form that an undivided run writes: a run may go
on with another number of ranks, another stage, or none at all. Source: ZeRO, arXiv 1910.02054.
"""

import copy
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config import ConfigError, Recipe

# Parts of a gradient are all that a rank sees of it; these want whole matrices, or their norms.
_UNDIVIDED = ("lamb", "muon")


def stage() -> int:
    """Which stage of ZeRO accelerate was launched with, 1 to 3; 0 where it was not.

    Raises:
        ConfigError: DeepSpeed is not installed, or does not start without a launcher.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return 0
    try:
        import deepspeed  # noqa: F401
        import transformers  # noqa: F401  # accelerate's plugin wants it
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install -e '.[deepspeed]'") from None
    wanted = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if wanted not in (1, 2, 3):
        raise ConfigError(f"ZeRO stage {wanted} divides nothing; use launch/ddp.yaml")
    return wanted


def check(wanted: int, precision: str, recipe: Recipe) -> None:
    """Refuse what does not go together with state that stage `wanted` divides.

    Raises:
        ConfigError: says what does.
    """
    optim = recipe.optim
    if precision == "fp16":
        raise ConfigError("--schedule.precision fp16 does not train under DeepSpeed; use bf16, or launch/ddp.yaml")
    if optim.optimizer in _UNDIVIDED:
        raise ConfigError(
            f"--optim.optimizer {optim.optimizer} needs whole gradients; use sgd, adamw or launch/ddp.yaml"
        )
    if recipe.schedule.accumulate == "auto":
        raise ConfigError("--schedule.accumulate auto cannot try sizes under DeepSpeed; give a number")
    if wanted == 3 and optim.ema:
        raise ConfigError("--optim.ema needs whole weights at every step; use launch/zero2.yaml, or leave it out")


def configure(config: dict[str, Any], precision: str, clip: float | None) -> None:
    """Complete the DeepSpeed configuration that accelerate made of its own."""
    config |= {
        "train_micro_batch_size_per_gpu": 1,  # it wants a number; batches have the size that they have
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip or 1e9,  # 0 counts as unset, and unset has clipped at 1
        "zero_allow_untested_optimizer": True,  # every optimizer of timm is
        # Not its "bf16", which casts the network: BatchNorm's statistics stay behind and fail.
        "torch_autocast": {"enabled": precision != "fp32", "dtype": "bfloat16"},
    }


def use_plain_gloo() -> None:
    """Keep it from compiling its own CPU collectives for half a minute; gloo has them."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Divided:
    """Whole weights and optimizer state of a network that DeepSpeed has divided.

    All methods but the constructor must be called on every rank.

    Args:
        network: as it was before DeepSpeed got hold of it.
        optimizer: likewise.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.base = network, optimizer
        self.divided: Any = None  # DeepSpeed's optimizer, once there is one
        self._twin = copy.deepcopy(network)  # on the CPU until it is wanted
        self.groups = optimizer.state_dict()["param_groups"]
        self.parameters = [weight for group in optimizer.param_groups for weight in group["params"]]

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict, of full tensors."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = {name: safe_get_full_fp32_param(weight) for name, weight in self.network.named_parameters()}
        return {name: whole.get(name, value) for name, value in self.network.state_dict().items()}

    def whole(self, device: torch.device) -> nn.Module:
        """A copy of the network with full weights; the next call gives the same one, with newer weights."""
        self._twin.load_state_dict(self.weights())
        return self._twin.to(device)

    def state_dict(self, lr: float) -> dict[str, Any]:
        """What the optimizer's own state dict would be, had it not been divided."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        kinds = next(iter(self.base.state.values()), {})
        scalars = {key: value for key, value in kinds.items() if not torch.is_tensor(value) or not value.dim()}
        state = {
            index: scalars
            | {key: safe_get_full_optimizer_state(weight, key) for key in kinds if key not in scalars}
            for index, weight in enumerate(self.parameters)
        }
        return {"state": state if kinds else {}, "param_groups": [{**group, "lr": lr} for group in self.groups]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Divide a whole optimizer state: one from `state_dict`, or of an undivided optimizer of the same kind."""
        if not saved["state"]:
            return
        for flat in self._flat():
            self.base.state[flat] = {
                key: torch.zeros_like(flat) if value.dim() else value.clone()
                for key, value in saved["state"][0].items()
            }
        self._link()
        for index, weight in enumerate(self.parameters):
            for key, value in saved["state"][index].items():
                if value.dim():
                    _set_optimizer_state(weight, value.to(weight.device), key)

    def _link(self) -> None:
        """Stages 1 and 2 connect weights and optimizer state after the first group's first step, too early."""
        if hasattr(self.divided, "_lazy_init_hp_params_optimizer_state"):
            self.divided._hp_optimizer_states_linked = False
            self.divided._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[Tensor]:
        """This rank's parts of all weights, as DeepSpeed's optimizer holds them: one tensor for many."""
        names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")  # stages 1 and 2; stage 3
        return next(getattr(self.divided, name) for name in names if hasattr(self.divided, name))


def _set_optimizer_state(weight: nn.Parameter, value: Tensor, key: str) -> None:
    """Give this rank its part of a whole tensor."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(weight, "ds_tensor"):
        safe_set_full_optimizer_state(weight, value, key)
        return
    # Stage 3 pads a weight so that it divides by the ranks, and its function for whole tensors forgets that.
    part, world = weight.ds_tensor.numel(), dist.get_world_size()
    padded = nn.functional.pad(value.flatten(), (0, part * world - value.numel()))
    safe_set_local_optimizer_state(weight, padded.tensor_split(world)[dist.get_rank()], key)
