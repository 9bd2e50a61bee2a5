"""A CUDA device that is not there, for machines without a GPU: tensors claim `cuda:0`, hold real values on the CPU, and refuse
what CUDA would refuse.

`python -m tests.ghost_cuda NAME ...` runs workloads of `workloads.py` on it and prints one line of JSON for each: errors, host
waits with file and line, launches, bytes and operations. It must be loaded before torch, so it runs in a process of its own.

It cannot see: kernels' numerics, ranges of half precision, streams and races, memory, several GPUs, fused attention, nerfacc's
real kernels.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
