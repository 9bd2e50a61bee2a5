"""Scripts that measure what the documentation states; `python -m benchmarks.run --list`."""

import os

# As the product's own processes (orchestrator/runtimes); torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
