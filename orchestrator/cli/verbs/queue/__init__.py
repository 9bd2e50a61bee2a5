"""The verbs of the queue: the orchestrator itself, the jobs that it has, and whose they are."""
