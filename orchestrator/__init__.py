"""Everything around the jobs: the command line, run folders, Ray, the queue, evaluation and training."""

import os
import sys

# "python -m orchestrator.…" puts the current folder in front of the path, where a user's own jobs.py or secrets.py would be
# run in the place of ours or of the standard library's. A checkout that is run from its own folder is found there alone.
_FOLDER_IS_IN_FRONT = sys.argv[:1] == ["-m"] and not sys.flags.safe_path
if _FOLDER_IS_IN_FRONT and not os.path.samefile(os.getcwd(), os.path.join(os.path.dirname(__file__), "..")):
    del sys.path[0]
