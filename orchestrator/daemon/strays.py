"""What a killed orchestrator may leave behind: processes of its own Ray that have not noticed its death yet.

Ray's processes end by themselves when their driver dies, some of them only after a minute, and a job's process among them
would keep its run folder locked. So every process below an orchestrator carries its state folder in its environment, and
the next orchestrator of that folder ends those that are left.
"""

from __future__ import annotations

import os

import psutil

from orchestrator.daemon.state_folder import StateFolder

__all__ = ["end_strays", "mark_descendants"]

MARK = "DREAMKILN_ORCHESTRATOR_STATE"
SECONDS_TO_END = 5.0


def mark_descendants(folder: StateFolder) -> None:
    """Every process that this one starts from here on is known as belonging to the folder."""
    os.environ[MARK] = str(folder.path)


def end_strays(folder: StateFolder) -> int:
    """Kill what an earlier orchestrator of the folder left; returns how many there were.

    Only for the owner of the folder's ledger: then no other orchestrator of the folder is alive.
    """
    me = psutil.Process()
    ours = {me.pid, *(process.pid for process in (*me.parents(), *me.children(recursive=True)))}
    strays = [process for process in psutil.process_iter() if process.pid not in ours and _belongs(process, folder)]
    for process in strays:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(strays, timeout=SECONDS_TO_END)
    return len(strays)


def _belongs(process: psutil.Process, folder: StateFolder) -> bool:
    try:
        return process.environ().get(MARK) == str(folder.path)
    except (psutil.Error, OSError):  # another user's, or it has ended
        return False
