"""Muon: momentum in which every matrix has equal singular values (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from diffusion.precision import has_fast_bfloat16


def orthogonalised(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T, (..., R, C), by the quintic Newton-Schulz iteration, in bfloat16 where that is fast.

    The coefficients are Jordan's: singular values end between about 0.7 and 1.2, which is near enough, in few iterations.
    """
    x = matrices.bfloat16() if has_fast_bfloat16(matrices.device.type) else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            # Matrices of one shape together: a GPU pays by the launch.
            together: dict[torch.Size, list[int]] = {}
            for number, direction in enumerate(directions):
                together.setdefault(direction.flatten(1).shape, []).append(number)
            for shape, numbers in together.items():
                updates = orthogonalised(torch.stack([directions[number].flatten(1) for number in numbers]))
                updates = updates.to(parameters[numbers[0]].dtype) * (-group["lr"] * 0.2 * max(shape) ** 0.5)
                for number, update in zip(numbers, updates, strict=True):
                    parameters[number].add_(update.view_as(parameters[number]))
