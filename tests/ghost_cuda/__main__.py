"""python -m tests.ghost_cuda NAME ...: see the package."""

import sys

from tests.ghost_cuda.workloads import WORKLOADS, lines

for line in lines(sys.argv[1:] or list(WORKLOADS)):
    print(line, flush=True)
