"""Lets torchvision import beside a CPU build of torch.

The tested CPU pair (torch 2.13.0+cpu, torchvision 0.28.0 from the plain index) mixes builds: torchvision's compiled
operators are linked against CUDA and do not load. torchvision tolerates that, except that its import attaches fake
kernels to two operators, `torchvision::nms` and `torchvision::qnms`, which then do not exist:

    RuntimeError: operator torchvision::nms does not exist

Declaring the two schemas is enough for the import, and with it for open_clip, for transformers' models and for
diffusers' UNet. The operators stay without an implementation: calling `torchvision.ops.nms` still fails, which
nothing here does.
"""

import importlib
import sys

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# torch.library undoes its registrations when the Library object is collected.
_library: torch.library.Library | None = None


def ensure_torchvision_imports() -> None:
    """Import torchvision, declaring its missing operators first if and only if it does not import by itself.

    Call it before the first import of open_clip, transformers' models or diffusers. Does nothing when torchvision
    loads normally or is not installed; a second call costs a dictionary look-up.

    Raises:
        Whatever torchvision raises for a reason other than the missing operators.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _forget_partial_import()
        _declare_missing_operators()
        importlib.import_module("torchvision")


def _declare_missing_operators() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)


def _forget_partial_import() -> None:
    """Drop the modules of the failed attempt: Python leaves already imported submodules behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
