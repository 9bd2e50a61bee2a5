"""`dreamkiln train`: trains the parts of a toybox prior, each resumable after any interruption.

Order: `autoencoder` and `clip` (independent), then `denoiser`, which reads both; `judge` at any time; `assemble` writes
the folder that ships.
"""
