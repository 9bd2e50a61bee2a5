"""One network, many jobs: samplers and score distillation advance in lockstep and their rows share a forward pass.

`Engine` is the loop, without threads and without Ray: `submit` a generator, call `step` until its ticket is finished.
"""

from diffusion.engine.batch_profile import BatchProfile, profile_batches
from diffusion.engine.engine import Engine, EngineConfig, Model, StepReport
from diffusion.engine.fair_share import FairShare
from diffusion.engine.ticket import Cancelled, NotFinite, Preview, Ticket

__all__ = [
    "BatchProfile",
    "Cancelled",
    "Engine",
    "EngineConfig",
    "FairShare",
    "Model",
    "NotFinite",
    "Preview",
    "StepReport",
    "Ticket",
    "profile_batches",
]
