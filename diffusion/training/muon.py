"""Muon: momentum in which every matrix has equal singular values (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from diffusion.precision import has_fast_bfloat16


def orthogonalised(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """About U V^T of a matrix U S V^T, shape (R, C), by the quintic Newton-Schulz iteration, in bfloat16 where that is fast.

    The coefficients are Jordan's: singular values end between about 0.7 and 1.2, which is near enough, in few iterations.
    """
    x = matrix.bfloat16() if has_fast_bfloat16(matrix.device.type) else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions; a convolution's kernel is a matrix of (outputs, inputs x kernel).

    Updates have the root mean square 0.2 of AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4), so that AdamW's learning
    rates and weight decay carry over.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, with Nesterov momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                size = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalised(direction).view_as(parameter).to(parameter.dtype), alpha=-group["lr"] * size)
