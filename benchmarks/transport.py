"""Bytes of a step of score distillation on their way to a prior and back, by the size of its pictures.

    python -m benchmarks.transport

Four views rendered at 64 pixels, as the messages of `orchestrator.prior.wire` are pickled: resized before they are sent, as
it was, and as they were rendered, as it is. Sizes do not depend on the weights, so a prior without networks answers.
"""

from __future__ import annotations

import pickle

import torch

from diffusion.resizing import resized
from jobs.prior_client import DistillationQuery
from orchestrator.prior.local import LocalPrior
from orchestrator.prior.wire import Wire
from tests.fakes import FakePrior

VIEWS, RENDERED = 4, 64


def bytes_of_a_step(image_size: int, form: str, *, resized_before: bool) -> tuple[int, int]:
    """Of the query and of its answer."""
    prior = LocalPrior(FakePrior(image_size=image_size))
    images = torch.full((VIEWS, 3, RENDERED, RENDERED), 0.4)
    query = DistillationQuery(
        images=resized(images, (image_size, image_size)) if resized_before else images,
        prompts=("a red ball, front view",) * VIEWS,
        t=torch.full((VIEWS,), 500),
        noise_keys=tuple((0, "distillation", "noise", 0, view) for view in range(VIEWS)),
        form=form,
    )
    return len(pickle.dumps(Wire(query), protocol=5)), len(pickle.dumps(Wire(prior.distill(query)), protocol=5))


def main() -> None:
    for image_size in (64, 256, 512, 1024):
        for form in ("x0", "sds"):
            for resized_before in (True, False):
                there, back = bytes_of_a_step(image_size, form, resized_before=resized_before)
                how = "resized before" if resized_before else "as rendered"
                print(f"prior of {image_size}, {form}, {how}: {there / 1e6:.2f} MB there, {back / 1e6:.2f} MB back")


if __name__ == "__main__":
    main()
