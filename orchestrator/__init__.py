"""Everything around the jobs: the command line, run folders, Ray, the queue, evaluation and training."""
