"""What a killed orchestrator may leave behind: processes of its own Ray that have not noticed its death yet.

Ray's processes end by themselves when their driver dies, some of them only after a minute, and a job's process among them
would keep its run folder locked. So the next orchestrator of the folder ends those that are left. It knows them by the folder's
name in their environment; or, where a process has written its title over that, as members of the session that the dead
orchestrator led.
"""

from __future__ import annotations

import os

import psutil

from orchestrator.host.state_folder import StateFolder

__all__ = ["end_orphans", "mark_descendants"]

MARK = "DREAMKILN_ORCHESTRATOR_STATE"
SECONDS_TO_END = 5.0


def mark_descendants(folder: StateFolder) -> None:
    """Every process that this one starts from here on is known as belonging to the folder."""
    os.environ[MARK] = str(folder.path)


def end_orphans(folder: StateFolder) -> int:
    """Kill what an earlier orchestrator of the folder left; returns how many there were.

    Only for the one that holds the folder: then no other orchestrator of the folder is alive.
    """
    me = psutil.Process()
    ours = {me.pid, *(process.pid for process in (*me.parents(), *me.children(recursive=True)))}
    session = _dead_session(folder)
    orphans = [
        process
        for process in psutil.process_iter()
        if process.pid not in ours and (_is_marked(process, folder) or _is_ray_in(process, session))
    ]
    for process in orphans:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(orphans, timeout=SECONDS_TO_END)
    return len(orphans)


def _dead_session(folder: StateFolder) -> int | None:
    """The session of the orchestrator that announced itself last, if its leader is gone: then nobody else can have it."""
    endpoint = folder.endpoint()
    return None if endpoint is None or psutil.pid_exists(endpoint.pid) else endpoint.pid


def _is_marked(process: psutil.Process, folder: StateFolder) -> bool:
    try:
        return process.environ().get(MARK) == str(folder.path)
    except (psutil.Error, OSError):  # another user's, or it has ended
        return False


def _is_ray_in(process: psutil.Process, session: int | None) -> bool:
    try:
        return session is not None and os.getsid(process.pid) == session and "ray" in " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return False
