"""What every test shares: one torch thread, a torchvision that imports, a Ctrl-C that is heard, and no orchestrator."""

import os
import signal
import tempfile

import pytest
import torch

from diffusion.torchvision_shim import ensure_torchvision_imports

# Tests run beside other work on few cores; one thread also makes float sums repeat from machine to machine.
torch.set_num_threads(1)

# diffusers, transformers and open_clip import torchvision as they load.
ensure_torchvision_imports()

# nohup, and `&` in a script, leave SIGINT ignored, here and in every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A developer's running orchestrator must not be given the jobs of a test.
os.environ["DREAMKILN_STATE"] = os.path.join(tempfile.gettempdir(), f"dreamkiln-tests-{os.getpid()}")


@pytest.fixture(autouse=True)
def same_weights_and_threads() -> None:
    """Networks that a test builds start with the same weights, and sums add in the same order, whichever tests ran before."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "requires_cuda" in item.keywords:
            item.add_marker(skip)
