"""Diffusion models in torch: schedules, samplers, guidance, networks, checkpoints, distillation and the batching engine."""
