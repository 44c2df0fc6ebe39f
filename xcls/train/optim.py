"""Optimizers and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterable

import torch
from torch import nn

from xcls.config.schema import Training, UserError

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum, decoupled decay.

    The paper suggests a rate 3 to 10 times smaller, and a weight decay as much larger, than AdamW's.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._step_supports_amp_scaling = True  # PyTorch's name for: it reads `found_inf`

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient. `closure` is not supported.

        If the tensor `self.found_inf` is set and is 1, nothing changes. The CPU does not wait for its value.
        """
        if closure is not None:
            raise ValueError("Lion.step takes no closure")
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                direction = momentum.mul(beta1).add_(parameter.grad, alpha=1 - beta1).sign_()
                updated = parameter.mul(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                moved = momentum.mul(beta2).add_(parameter.grad, alpha=1 - beta2)
                if found_inf is not None:
                    updated = torch.where(found_inf > 0, parameter, updated)
                    moved = torch.where(found_inf > 0, momentum, moved)
                parameter.copy_(updated)
                momentum.copy_(moved)


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Parameter groups: weight matrices with weight decay; norms, biases, embeddings and position encodings without.
    The token embedding is a third group if it has its own learning rate: `lr_factor` times that of the others.

    An embedding row gets a gradient only when its token occurs, but would decay at every step: rare words would vanish.
    """
    encoder = getattr(model, "encoder", None)
    factor = training.embedding_lr_factor or 1.0
    tokens = [] if encoder is None or factor == 1.0 else list(encoder.token_embedding.parameters())
    spared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    if encoder is not None and encoder.position is not None:
        spared |= {id(parameter) for parameter in encoder.position.parameters()}
    apart = {id(parameter) for parameter in tokens}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in apart]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in spared]
    others = [parameter for parameter in trained if parameter.ndim < 2 or id(parameter) in spared]
    groups = (
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": tokens, "weight_decay": 0.0, "lr_factor": factor},
    )
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of `training` for the parameters of `model`. Raises UserError if this torch does not have it.

    adamw: AdamW (Loshchilov & Hutter 2019), fused if this torch supports it on the parameters' device. adafactor:
    PyTorch's Adafactor (Shazeer & Stern 2018) with its default decay rates. lion: `Lion`.
    """
    groups, betas = parameter_groups(model, training), (training.beta1, training.beta2)
    assert training.lr is not None
    if training.optimizer == "lion":
        return Lion(groups, lr=training.lr, betas=betas)
    if training.optimizer == "adamw":
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, lr=training.lr, betas=betas, fused=on_gpu or TORCH >= (2, 4))
    if not hasattr(torch.optim, "Adafactor"):
        wanted = f"needs torch 2.5 or newer (this is {torch.__version__})"
        raise UserError(f"optimizer=adafactor {wanted}. Set optimizer=adamw or lion.")
    return torch.optim.Adafactor(groups, lr=training.lr)


COOLDOWN = 0.2  # share of the steps after warm-up in which `wsd` falls to 0
# The factor of the learning rate after a share (0 to 1) of the steps that follow the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),  # Loshchilov & Hutter 2017
    "constant": lambda share: 1.0,
    "wsd": lambda share: min(1.0, (1.0 - share) / COOLDOWN),  # warm-up, stable, decay: Hu et al. 2024, section 4
}


def rate(step: int, total: int, training: Training) -> float:
    """The learning rate of update `step` (from 0) of `total`: linear warm-up, then the schedule."""
    assert training.lr is not None
    warmup = round(training.warmup * total)
    if step < warmup:
        return training.lr * (step + 1) / (warmup + 1)
    return training.lr * SCHEDULES[training.schedule]((step - warmup) / max(1, total - warmup))
