"""One random pipeline a model for the whole session."""

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.diffusion.checkpoints.published import Saved, random_pipeline


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Model -> diffusers' pipeline of reduced random networks, and the folder it was saved to. Change neither."""

    @functools.cache
    def make(model: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(model)
        return random_pipeline(model, folder), folder

    return make
