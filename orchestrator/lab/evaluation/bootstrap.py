"""How far a mean over a few objects can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron 1979), the same for the same values; of one value itself."""
    if len(values) < 2:
        return (float(values[0]), float(values[0]))
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=0,
    )
    return (round(float(found.confidence_interval.low), 4), round(float(found.confidence_interval.high), 4))
