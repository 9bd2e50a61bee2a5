"""Measurements of DreamKiln on the machine at hand; `python -m benchmarks.run` lists and runs them."""
