"""Everything that can be set: the groups, the `group.key=value` grammar, and Hydra, which only `compose` imports."""
