"""A loss of one's own: classifier score distillation (2310.19415 equation 7), the part of guidance that the text makes.

python examples/own_loss.py [GROUP.KEY=VALUE ...]
dreamkiln text-to-3d "a red house" --preset draft distillation.form=own_loss.py:classifier_score
"""

import sys
from collections.abc import Generator
from typing import Any

import dreamkiln
from dreamkiln import Denoised, DenoiseRequest, Distilled, EncodeGradientRequest, Guidance


def classifier_score(step: Denoised) -> Generator[Any, Any, Distilled]:
    """The noise that the network sees with the text minus that without it, pulled back through the encoder."""
    with_text = yield DenoiseRequest(step.x_t, step.t, step.condition, Guidance(scale=1.0))
    without = yield DenoiseRequest(step.x_t, step.t, step.condition, Guidance(scale=0.0))
    gradient = yield EncodeGradientRequest(step.images, step.weighted(with_text.eps - without.eps))
    return Distilled(gradient)


if __name__ == "__main__":
    settings = {"preset": "draft", "runtime.kind": "inline", "distillation.form": classifier_score}
    outcome = dreamkiln.text_to_3d("a red house", settings, overrides=sys.argv[1:], out="house")
    print(f"{outcome.did}: {outcome.folder / 'mesh.glb'}")
