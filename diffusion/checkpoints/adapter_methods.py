"""What an adapter's tensors add to a weight: LoRA and its relatives, each by its paper and its trainers' code.

An adapter keeps a few small tensors a module. Their names after the module's tell the method (`ROLES`), and `change` makes
of them what the trained module adds to, or makes of, the weight.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# How names end -> what the tensor is. What is before the ending is the module.
ROLES = (
    (re.compile(r"\.lora_down\.weight$|\.lora_A(\.default)?\.weight$|\.lora(_linear_layer)?\.down\.weight$"), "down"),
    (re.compile(r"\.lora_up\.weight$|\.lora_B(\.default)?\.weight$|\.lora(_linear_layer)?\.up\.weight$"), "up"),
    (re.compile(r"\.lora_B(\.default)?\.bias$"), "up_bias"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.scalar$"), "scalar"),
    (re.compile(r"\.dora_scale$|\.lora_magnitude_vector(\.default)?(\.weight)?$"), "magnitude"),
    (re.compile(r"\.diff$|\.w_norm$"), "diff"),
    (re.compile(r"\.diff_b$|\.b_norm$"), "diff_b"),
    *((re.compile(rf"\.{name}$"), name) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((re.compile(rf"\.lokr_{name}$"), f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
PLAIN = frozenset(("down", "up", "up_bias", "diff_b", "scalar"))
"""What a plain LoRA has; DoRA has magnitudes besides, a Tucker core stands between the factors."""
# Methods that share the file format and are not offered.
OTHER_METHODS = {"oft_diag": "OFT", "oft_blocks": "OFT", "a1": "BOFT", "on_input": "IA3", "glora": "GLoRA"}


@dataclass
class Adapter:
    """One module's tensors by role.

    Args:
        alpha: of the file; None where it has none.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None

    def change(self, weight: Tensor, scale: float, *, alpha: float | None, rank_stabilised: bool = False) -> Tensor | None:
        """The module's weight with the adapter in it, float32, in the weight's shape; None where it changes the bias alone.

        Args:
            scale: 1 as it was trained. alpha: where the file has none. rank_stabilised: see 2312.03732.

        Raises:
            KeyError: a tensor is missing, by its role. ValueError: the tensors do not fit the weight.
        """
        delta = self._delta(alpha, rank_stabilised)
        if delta is None:
            return None
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise ValueError(f"{delta.shape[0]} x {delta[0].numel()}")
        changed = weight.float() + scale * delta.reshape(weight.shape).to(weight.device)
        return changed if "magnitude" not in self.tensors else _with_magnitude(changed, self.tensors["magnitude"])

    def factors(
        self, weight: Tensor, scale: float, *, alpha: float | None, rank_stabilised: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """A plain LoRA as A (r, I, ...) and B (O, r), float32, every scale in B; None where the change is no sum of these.

        Raises:
            KeyError: a tensor is missing, by its role. ValueError: the tensors do not fit the weight.
        """
        if not self.tensors.keys() & {"down", "up"} or self.tensors.keys() - PLAIN:
            return None
        up, down = self.tensors["up"].float().flatten(1), self.tensors["down"].float()
        if up.shape != (len(weight), len(down)) or down[0].numel() != weight[0].numel():
            raise ValueError(f"{len(up)} x {down[0].numel()}")
        scalar = float(self.tensors["scalar"]) if "scalar" in self.tensors else 1.0
        strength = scale * scalar * self._strength(len(down), alpha, rank_stabilised)
        return down.reshape(len(down), *weight.shape[1:]), strength * up

    @property
    def changes_bias(self) -> bool:
        """Whether it changes the module's bias."""
        return bool(self.tensors.keys() & {"diff_b", "up_bias"})

    def bias_change(self, *, alpha: float | None, rank_stabilised: bool = False) -> Tensor | None:
        """What is added to the module's bias, (O,) float32; None for nothing."""
        if "diff_b" in self.tensors:
            return self.tensors["diff_b"].float()
        if "up_bias" not in self.tensors:
            return None
        return self.tensors["up_bias"].float() * self._strength(len(self.tensors["down"]), alpha, rank_stabilised)

    def _strength(self, rank: int, alpha: float | None, rank_stabilised: bool) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (2312.03732)."""
        alpha = alpha if self.alpha is None else self.alpha
        divisor = math.sqrt(rank) if rank_stabilised else rank
        return 1.0 if alpha is None else alpha / divisor

    def _delta(self, alpha: float | None, rank_stabilised: bool) -> Tensor | None:
        parts = {name: tensor.float() for name, tensor in self.tensors.items()}
        scalar = float(parts["scalar"]) if "scalar" in parts else 1.0
        if "diff" in parts:
            return scalar * parts["diff"]
        if any(name.startswith("hada") for name in parts):
            return scalar * self._strength(len(parts["hada_w1_b"]), alpha, rank_stabilised) * _hadamard(parts)
        if any(name.startswith("lokr") for name in parts):
            ranks = [len(parts[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
            strength = self._strength(ranks[0], alpha, rank_stabilised) if ranks else 1.0
            return scalar * strength * _kronecker(parts)
        if not parts.keys() & {"down", "up"}:
            return None
        up, down = parts["up"].flatten(1), parts["down"]
        if up.shape[1] != len(down):
            raise ValueError(f"{up.shape[0]} x {down[0].numel()}")
        if "mid" in parts:
            product = torch.einsum("or,rskl,si->oikl", up, parts["mid"], down.flatten(1))
        else:
            product = up @ down.flatten(1)
        return scalar * self._strength(len(down), alpha, rank_stabilised) * product


def _hadamard(parts: Mapping[str, Tensor]) -> Tensor:
    """LoHa (2108.06098): the elementwise product of two factorised matrices, or Tucker cores with `hada_t1`, `hada_t2`."""
    return _factors(parts, "hada_w1", "hada_t1") * _factors(parts, "hada_w2", "hada_t2")


def _kronecker(parts: Mapping[str, Tensor]) -> Tensor:
    """LoKr (2309.14859): the Kronecker product of two matrices, each whole or factorised."""
    first = parts["lokr_w1"] if "lokr_w1" in parts else _factors(parts, "lokr_w1", "lokr_t1")
    second = parts["lokr_w2"] if "lokr_w2" in parts else _factors(parts, "lokr_w2", "lokr_t2")
    return torch.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)), second.contiguous())


def _factors(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """a b, or with a core t (r, s, kh, kw) the kernel sum_rs t_rs a_r b_s, which has a and b transposed."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return torch.einsum("rskl,si,ro->oikl", parts[core], b, a) if core in parts else a @ b.flatten(1)


def _with_magnitude(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA (2402.09353): each row of the weight, or each column where the magnitudes are of the columns, at its length."""
    magnitude = magnitude.float().to(weight.device)
    by_column = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == weight.shape[1] != 1
    kept = 1 if by_column else 0
    others = [dim for dim in range(weight.ndim) if dim != kept]
    length = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (magnitude.reshape(length.shape) / length)
