"""Training of the prior's parts: one loop, one objective a file."""
