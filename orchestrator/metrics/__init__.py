"""What Prometheus is told: `catalogue` declares every metric, the modules beside it measure them.

Ray's agent on each node exports them, with "ray_" before their names, about every 10 s. Outside Ray they go nowhere.
"""
