"""What a file causes is a sentence about the file; what our own code causes is not."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion.checkpoints.errors import PriorError, making_sense_of
from diffusion.networks.unet import UNetConfig

HERE = Path("unet/config.json")


@pytest.mark.parametrize(
    "read",
    [
        lambda: (3).values(),
        lambda: "text".items(),
        lambda: None.get("x"),
        lambda: operator.getitem(3, "weight_map"),
        lambda: "a" > 3,
        lambda: float([]),
        lambda: UNetConfig.from_dict({"down_block_types": 3}),
    ],
)
def test_a_value_of_another_type_is_the_files(read: Callable[[], Any]):
    with (
        pytest.raises(PriorError, match=r"unet/config\.json holds a value of another type than expected"),
        making_sense_of(HERE),
    ):
        read()


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda: json.laods("{}"), AttributeError),
        (lambda: UNetConfig().levles, AttributeError),
        (lambda: operator.add(1), TypeError),
        (lambda: UNetConfig(sample_sise=3), TypeError),
        (lambda: UNetConfig.from_dict(), TypeError),
    ],
)
def test_a_slip_of_ours_stays_what_it_is(read: Callable[[], Any], kind: type[Exception]):
    with pytest.raises(kind), making_sense_of(HERE):
        read()
