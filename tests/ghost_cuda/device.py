"""The device: a tensor class, what it refuses, and what is counted."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ghost_cuda import ROOT

HERE = Path(__file__).parent


def _guard() -> Path:
    """guard.cpp as a library, compiled once for each torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder, source = Path(spec.origin).parent, HERE / "guard.cpp"
    version = (torch_folder / "version.py").read_bytes()
    name = f"ghost-cuda-{hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / f"{os.getuid()}-{name}"
    if not library.exists():
        libraries = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"]
        unfinished = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(unfinished), *libraries], check=True)
        unfinished.rename(library)
    return library


assert "torch" not in sys.modules, "the ghost must be loaded before torch"
_library = ctypes.CDLL(str(_guard()))
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

_library.install_ghost()
aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
}
"""Operations whose answer, or its size, the host must know: it waits for all that the device was given to do."""

COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
WITHOUT_KERNELS = {
    aten.detach.default,
    aten.alias.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.squeeze.dims,
    aten.t.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.as_strided.default,
    aten.lift_fresh.default,
    aten._reshape_alias.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.unfold.default,
    aten._local_scalar_dense.default,
}
"""Views and empty tensors, which launch nothing."""


class Refused(RuntimeError):
    """What CUDA would have refused."""


class Record:
    """What was seen since `clear`. waits: (kind, file:line) -> times. operations: aten name -> times."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()
        self.num_launches = 0

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def to_json(self) -> dict[str, Any]:
        waits = [{"kind": kind, "place": place, "times": times} for (kind, place), times in self.waits.most_common()]
        return {
            "waits": waits,
            "num_waits": sum(self.waits.values()),
            "refused": dict(self.refused),
            "operations": dict(self.operations),
            "num_bytes": dict(self.num_bytes),
            "num_launches": self.num_launches,
        }


RECORD = Record()


def _place() -> str:
    """The innermost line of this repository that is not the ghost's own, and the one that called it."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 2:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and not file.is_relative_to(HERE) and ".venv" not in file.parts:
            found.append(f"{file.relative_to(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found) or "autograd"


def _wait(kind: Any) -> None:
    RECORD.waits[str(kind), _place()] += 1


def _refuse(operation: Any, why: str) -> None:
    place = _place()
    RECORD.refused[f"{operation}: {why} at {place}"] += 1
    raise Refused(f"{operation}: {why} at {place}")


class Ghost(torch.Tensor):
    """A tensor that says it is on cuda:0; `inner` is on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Ghost:
        assert type(inner) is not Ghost
        size = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        ghost = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, **size, dtype=inner.dtype, layout=inner.layout, device=CUDA
        )
        ghost.inner = inner
        return ghost

    def __repr__(self) -> str:
        return f"Ghost({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU; `torch.load` puts it where it is wanted."""
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.numpy or function is torch.Tensor.__array__:
            RECORD.refused[f"numpy at {_place()}"] += 1
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.tolist:
                _wait("tolist")
                return args[0].inner.detach().tolist()
            if function is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], Ghost):
                return _attention(*args, **kwargs)
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})


def _attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """As the documentation of F.scaled_dot_product_attention writes it; torch's choice of kernels asks the CUDA library."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1).to(v.dtype) @ v


def _check(function: Any, args: Any, kwargs: Any, ghosts: list[Any], plains: list[Any]) -> None:
    """Refuse what mixes devices; count what CUDA takes at the price of a wait."""
    generator = kwargs.get("generator")
    if generator is not None and ghosts and generator.device.type == "cpu":
        _refuse(function, "a generator of the CPU for a tensor of CUDA")
    if not ghosts or not plains or function in COPIES:
        return
    if function in INDEXING:
        if not isinstance(args[0], Ghost):
            _refuse(function, "a tensor of the CPU is indexed or filled by tensors of CUDA")
        value = args[2] if len(args) > 2 else None
        if isinstance(value, torch.Tensor) and not isinstance(value, Ghost) and value.ndim:
            _refuse(function, "values of the CPU are put into a tensor of CUDA")
        _wait(f"{function} with indices of the CPU")
        return
    fills = (aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.fill.Tensor)
    if all(plain.ndim == 0 for plain in plains) and (torch.Tag.pointwise in function.tags or function in fills):
        if function._schema.is_mutable and args and not isinstance(args[0], Ghost):
            _refuse(function, "a scalar of the CPU is changed in place by a tensor of CUDA")
        return
    _refuse(function, "operands on cuda:0 and cpu")


def _count(function: Any, args: Any, kwargs: Any, ghosts: list[Any], plains: list[Any], target: str) -> None:
    if function in COPIES and (bool(ghosts) != (target == "cuda") or (ghosts and plains)):
        source = args[0] if function is aten._to_copy.default else args[1]
        way = "from the device" if isinstance(source, Ghost) else "to the device"
        RECORD.num_bytes[way] += source.numel() * source.element_size()
        if isinstance(source, Ghost) or not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
            _wait(f"copy {way}")
    elif ghosts and function in WAITS:
        _wait(function)
    elif ghosts and function in INDEXING and any(getattr(i, "dtype", None) in (torch.bool, torch.uint8) for i in args[1]):
        _wait(f"{function} with a mask")
    if ghosts or target == "cuda":
        RECORD.operations[str(function)] += 1
        RECORD.num_launches += function not in WITHOUT_KERNELS


def _dispatch(function: Any, args: Any, kwargs: Any) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ghosts = [x for x in tensors if isinstance(x, Ghost)]
    plains = [x for x in tensors if not isinstance(x, Ghost)]
    device = kwargs.get("device")
    _check(function, args, kwargs, ghosts, plains)
    target = torch.device(device).type if device is not None else ("cuda" if ghosts else "cpu")
    if function in (aten.copy_.default, aten.copy.default):
        target = "cuda" if isinstance(args[0], Ghost) else "cpu"
    _count(function, args, kwargs, ghosts, plains, target)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Ghost) else x, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = CPU
    inner_kwargs.pop("pin_memory", None)
    out = function(*inner_args, **inner_kwargs)
    if target != "cuda":
        return out
    # What was changed in place is handed back itself.
    given = {id(x.inner): x for x in ghosts} if function._schema.is_mutable else {}
    return tree_map(lambda x: given[id(x)] if id(x) in given else Ghost(x) if isinstance(x, torch.Tensor) else x, out)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})


def _answering(answer: Any) -> Any:
    """A function of its own each time: dynamo's table knows torch's functions by identity."""
    return lambda *_, **__: answer


class _Properties:
    name, total_memory, major, minor, multi_processor_count = "Ghost H100", 80 * 2**30, 9, 0, 132


@contextlib.contextmanager
def ghost_cuda() -> Iterator[None]:
    """Inside, torch has one CUDA device; threads that are started here know it too. For the rest of the process."""
    cuda: Any = torch.cuda
    answers: dict[str, Any] = dict.fromkeys(("_lazy_init", "init", "synchronize", "empty_cache", "set_device"))
    answers |= {"reset_peak_memory_stats": None, "max_memory_allocated": 0, "memory_allocated": 0}
    answers |= dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True)
    answers |= {"device_count": 1, "current_device": 0, "get_device_capability": (9, 0), "get_device_name": _Properties.name}
    answers |= {"get_device_properties": _Properties, "mem_get_info": (_Properties.total_memory,) * 2}
    for name, answer in answers.items():
        setattr(cuda, name, _answering(answer))
    cuda.default_generators = (torch.Generator(),)
    cuda.get_rng_state = lambda *_, **__: cuda.default_generators[0].get_state()
    cuda.set_rng_state = lambda state, *_, **__: cuda.default_generators[0].set_state(state)
    cuda.manual_seed_all = lambda seed: cuda.default_generators[0].manual_seed(seed)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    load, run = torch.load, threading.Thread.run

    def load_there(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        loaded = load(*args, map_location="cpu", **kwargs)
        if map_location is None or torch.device(map_location).type != "cuda":
            return loaded
        return tree_map(lambda x: Ghost(x) if isinstance(x, torch.Tensor) else x, loaded)

    def run_there(self: threading.Thread) -> None:
        torch._C._set_only_lift_cpu_tensors(True)  # a thread's own
        with _Mode():
            run(self)

    torch.load, threading.Thread.run = load_there, run_there  # type: ignore[method-assign]
    with _Mode():
        yield


def operations_without_a_cuda_kernel(operations: set[str]) -> set[str]:
    """Those of aten's operations for which torch's own table of kernels names none on CUDA."""
    import yaml

    spec = importlib.util.find_spec("torchgen")
    assert spec is not None and spec.origin is not None
    table = Path(spec.origin).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {entry["func"].split("(")[0]: entry for entry in yaml.safe_load(table.read_text())}

    def has_kernel(name: str) -> bool:
        entry = entries[name]
        if "structured_delegate" in entry:
            return has_kernel(entry["structured_delegate"])
        keys = ",".join(entry.get("dispatch", {"CompositeImplicitAutograd": ""})).replace(" ", "").split(",")
        return "CUDA" in keys or "ufunc_inner_loop" in entry or any(key.startswith("Composite") for key in keys)

    def name_of(operation: str) -> str:
        _, name, overload = operation.split(".")
        return name if overload == "default" else f"{name}.{overload}"

    return {operation for operation in operations if (name := name_of(operation)) in entries and not has_kernel(name)}
