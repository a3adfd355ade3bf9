"""Optimiser factories: `factory(parameters, lr) -> torch.optim.Optimizer`. A scheduled `lr` is a 0-d tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam(fused=True)`, number for number, without the bookkeeping around its one kernel.

    The lists of tensors that a step hands to the kernel are gathered once, not at every step: for networks of 256 units
    on a CPU that was half of its time. All parameters have a gradient at every step, or the parent's step is taken.
    """

    _gathered: tuple[list[Tensor], ...] | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float | Tensor, eps: float = 1e-8) -> None:
        super().__init__(parameters, lr=lr, eps=eps, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._gathered = None

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        group = self.param_groups[0]
        parameters = group["params"]
        gradients = [parameter.grad for parameter in parameters]
        if closure is not None or any(gradient is None for gradient in gradients):
            self._gathered = None
            for state in self.state.values():  # no count is shared any more
                state["step"] = state["step"].clone()
            return super().step(closure)
        if self._gathered is None:
            if any(parameter not in self.state for parameter in parameters):
                return super().step()  # makes the state
            self._gathered = self._gather([self.state[parameter] for parameter in parameters])
        means, squares, steps, counts = self._gathered
        with torch.no_grad():
            torch._foreach_add_(counts, 1.0)
            torch._fused_adam_(
                parameters, gradients, means, squares, [], steps, lr=group["lr"], beta1=group["betas"][0],
                beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
                maximize=False, grad_scale=None, found_inf=None,
            )  # fmt: skip
        return None

    # PyTorch wraps `step` for profilers and hooks, unless it is marked so: a quarter of the time of a small step. Hooks
    # that are registered with this optimiser are therefore not called.
    step.hooked = True  # type: ignore[attr-defined]

    def _gather(self, states: list[dict[str, Tensor]]) -> tuple[list[Tensor], ...]:
        """Means, squares, the count of steps of each parameter, and the counts that there are.

        Parameters that have made as many steps share one tensor: adding 1 to each of a dozen took a third of a step.
        """
        counts: dict[float, Tensor] = {}
        for state in states:
            state["step"] = counts.setdefault(state["step"].item(), state["step"])
        lists = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        return (*lists, list(counts.values()))


def adam(parameters: list[nn.Parameter], lr: float | Tensor, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Adam with PyTorch's betas (0.9 and 0.999), in one fused kernel."""
    return FusedAdam(parameters, lr, eps)


def adamw(parameters: list[nn.Parameter], lr: float | Tensor, weight_decay: float = 1e-2) -> torch.optim.Optimizer:
    """Adam whose parameters shrink by `lr * weight_decay` of themselves a step, apart from the gradient.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
