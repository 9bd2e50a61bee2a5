"""The noise schedules that the models of this folder train with."""

from dataclasses import replace

from diffusion.schedule import NoiseSchedule

LINEAR = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
"""DDPM's: betas from 1e-4 to 0.02 (2006.11239 section 4); the last step ends on clean data."""

COSINE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", steps_offset=0, set_alpha_to_one=True)
"""Improved DDPM's (2102.09672 eq. 17)."""

GLIDE = replace(COSINE, prediction_type="v_prediction", timestep_spacing="trailing")
"""GLIDE's base model's. The authors' predicts eps; v (2202.00512 section 4) stays finite where the signal vanishes."""

GLIDE_UPSAMPLER = replace(LINEAR, prediction_type="sample", timestep_spacing="trailing")
"""GLIDE's upsampler's (the authors' code: "linear"); why it predicts x0 is said in `glide_upsampler`."""
