"""The prior that judges and generates: in this process, resident on a thread, in a Ray actor, and as a client sees it."""
