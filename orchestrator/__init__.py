"""Everything around the jobs: the command line, run folders, Ray, the queue, evaluation and training."""

import os
import sys

# "python -m orchestrator.…" looks into the current folder before anything else, where a user's own jobs.py or secrets.py would
# be run in the place of ours or of the standard library's. A checkout that is run from its own folder is found there alone.
if sys.argv[:1] == ["-m"] and not os.path.samefile(os.getcwd(), os.path.join(os.path.dirname(__file__), "..")):
    sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
