"""A Ray cluster of three nodes on one machine, on its loopback address alone, for trying what docs/cluster.md says.

    python docs/cluster/three_nodes.py [NUM_NODES] [CPUS_PER_NODE]

The first node is the head and takes no jobs. While it runs, `kill 2` ends node 2 at once, as a power cut would, `add` starts
another, and `quit`, Ctrl-C or Ctrl-D end them all.
"""

from __future__ import annotations

import os
import subprocess
import sys

from orchestrator.runtimes.ray_start import OWN_RAY, has_token


def main(num_nodes: int = 3, cpus_per_node: int = 2) -> None:
    """Runs until told to quit."""
    os.environ.update(OWN_RAY)
    if not has_token():
        subprocess.run(["ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {number: cluster.add_node(num_cpus=cpus_per_node) for number in range(2, num_nodes + 1)}
    print(f"{num_nodes} nodes at {cluster.address}: dreamkiln up --address {cluster.address}", flush=True)
    try:
        for line in sys.stdin:
            match line.split():
                case ["kill", number] if number.isdigit() and int(number) in nodes:
                    cluster.remove_node(nodes.pop(int(number)), allow_graceful=False)
                case ["add"]:
                    nodes[max(nodes, default=1) + 1] = cluster.add_node(num_cpus=cpus_per_node)
                case ["quit"]:
                    break
                case _:
                    print(f"kill one of {', '.join(map(str, nodes))}; add; quit", flush=True)
                    continue
            print(f"nodes {', '.join(map(str, nodes))} beside the head", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
