"""`dreamkiln up`: start the orchestrator."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "up"
HELP = "Start the orchestrator: it queues jobs, runs them on one shared prior, and outlives this terminal."


def command(
    state: common.State = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar="DREAMKILN_LEDGER",
            help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; a file in the folder. What has a password is better "
            "given in the variable, which other users cannot see.",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, HOST:PORT or auto; otherwise a Ray of its own.")
    ] = None,
    num_workers: Annotated[
        int, typer.Option(help="Jobs at once; 0: from the cores, or as many as the cluster has room for.")
    ] = 0,
    memory: Annotated[
        float, typer.Option(help="Gigabytes for jobs and priors; 0: 80 % of this machine's, or all of the cluster's.")
    ] = 0.0,
    host: Annotated[str, typer.Option(help="Where its HTTP API listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all GPUs here) or cuda:N.")] = "auto",
    num_threads: Annotated[int, typer.Option(help="Torch threads of each prior; 0: every core.")] = 0,
    prior_replicas: Annotated[
        int, typer.Option(help="Processes that hold the same prior and share its jobs; for several GPUs or nodes.")
    ] = 1,
    job_cpus: Annotated[float, typer.Option(help="On a cluster: cores of each job.")] = 1.0,
    job_gpus: Annotated[float, typer.Option(help="On a cluster with GPUs: part of one that each job takes.")] = 0.25,
    prior_cpus: Annotated[float, typer.Option(help="On a cluster: cores of each prior.")] = 1.0,
    prior_gpus: Annotated[
        float | None, typer.Option(help="On a cluster with GPUs: part of one that each prior takes; by default from its size.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Of the Prometheus endpoint of its own Ray; 0: a free one.")] = 0,
    keep_days: Annotated[
        float,
        typer.Option(
            envvar="DREAMKILN_KEEP_DAYS", help="Ended jobs and their logs are forgotten after so many days; 0: never."
        ),
    ] = 0.0,
    allow_prior: Annotated[
        list[str] | None, typer.Option(help="A prior that everybody with a token may ask, beside the toybox; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which others reach the HTTP API; may be repeated.")
    ] = None,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(help="Below which tables of others may name pictures: https://HOST/PATH/; may be repeated."),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Where folders of jobs from the page and the HTTP API are made; STATE/outputs.")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in this terminal until Ctrl-C.")] = False,
    json: common.Json = False,
) -> None:
    """Returns when it answers."""
    from orchestrator.client.launch import launch, reachable
    from orchestrator.daemon import daemon
    from orchestrator.host.state_folder import StateFolder
    from orchestrator.runtimes.placement import ClusterSizes

    folder = StateFolder.find(state)
    options = daemon.DaemonOptions(
        state=str(folder.path),
        ledger=ledger,
        address=address,
        num_workers=num_workers,
        memory_gb=memory,
        host=host,
        port=port,
        device=device,
        num_threads=num_threads,
        prior_replicas=prior_replicas,
        sizes=ClusterSizes(job_cpus=job_cpus, job_gpus=job_gpus, prior_cpus=prior_cpus, prior_gpus=prior_gpus),
        metrics_port=metrics_port,
        keep_days=keep_days,
        outputs="" if outputs is None else str(outputs.absolute()),
        priors=("toybox", *(allow_prior or ())),
        hosts=tuple(allow_host or ()),
        urls=tuple(allow_url or ()),
    )
    if foreground:
        import logging

        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        daemon.serve(options)
        return
    launched = launch(options)
    if json:
        print(json_module.dumps({"ok": True, "is_new": launched.is_new, **launched.endpoint.__dict__}))
        return
    print(f"{'Running' if launched.is_new else 'Already running'}: {launched.endpoint.url} (process {launched.endpoint.pid})")
    print(f"  page   {reachable(launched.endpoint.url)}/ (its token: {folder.token_file})")
    print(f"  ledger {launched.endpoint.ledger}")
    print('  dreamkiln submit text-to-3d "a red mushroom with a white stem"')
    print("  dreamkiln jobs watch")
