"""Radiance fields in torch: cameras, fields, rendering, the fit, mesh extraction, and the toybox of known objects."""
