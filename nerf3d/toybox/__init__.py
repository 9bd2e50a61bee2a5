"""Procedural, captioned 3D objects with exactly known geometry: they train and judge the diffusion prior."""
