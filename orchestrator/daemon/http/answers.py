"""What the API answers, for its schema: the answers themselves are made in `calls` and not checked again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.states import State

__all__ = [
    "Acted",
    "FileInfo",
    "Files",
    "Happening",
    "JobInfo",
    "JobList",
    "JobShown",
    "Log",
    "Made",
    "MadeTogether",
    "Me",
    "OpenAIProblem",
    "Problem",
    "Queued",
    "UploadInfo",
]


class Problem(BaseModel):
    """Every error: what happened, what was expected and how to mend it, in one sentence."""

    error: str
    kind: str
    exit_code: int


class OpenAIFault(BaseModel):
    """See `OpenAIProblem`. param, code: always null here."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIProblem(BaseModel):
    """An error as OpenAI's client reads it, of its calls alone."""

    error: OpenAIFault


class Happening(BaseModel):
    """One server-sent event. id: of the ledger, of none that is progress. data: JSON, of the `event` that it is."""

    event: Literal["state", "info", "warning", "progress", "end"] | None = None
    data: str = ""
    id: str | None = None
    retry: int | None = None


class JobInfo(BaseModel):
    """A job. Times are seconds since 1970, UTC."""

    model_config = ConfigDict(extra="allow")

    id: int
    kind: str
    name: str
    user: str
    spec: dict[str, Any]
    settings: dict[str, Any]
    prior: str
    out: str
    priority: int
    state: State
    reason: str
    stage: str
    step: int
    total: int
    seconds_left: float | None
    metrics: dict[str, Any]
    created_at: float
    started_at: float | None
    ended_at: float | None
    seconds_run: float
    waits: str = Field(description="Why it does not start, of a queued job.")


class Made(BaseModel):
    """is_new: False where it is a job that was there."""

    id: int
    is_new: bool
    out: str
    job: JobInfo


class Queued(BaseModel):
    """is_new: False where it is a job that was there."""

    id: int
    is_new: bool
    out: str


class MadeTogether(BaseModel):
    """Jobs that compete: what there is to look for with `GET /v1/jobs?group=`."""

    group: int
    jobs: list[Queued]


class JobList(BaseModel):
    """cursor: the next page's; null on the last one, which alone ends a search. now: on the clock of all times here.

    counts: of all jobs, by state.
    """

    now: float
    jobs: list[JobInfo]
    cursor: int | None
    counts: dict[State, int]


class JobShown(BaseModel):
    """Everything about one job."""

    now: float
    job: JobInfo
    attempts: list[dict[str, Any]]
    artefacts: list[dict[str, Any]]
    events: list[dict[str, Any]]
    shards: dict[str, Any] | None


class Log(BaseModel):
    """offset: the byte to go on from."""

    text: str
    offset: int
    is_over: bool


class Acted(BaseModel):
    """state: the job's by now; a running one obeys at its next step."""

    id: int
    state: State


class FileInfo(BaseModel):
    """sha256: hex, or empty where it is not written down; the ETag of the file always is."""

    name: str
    num_bytes: int
    media_type: str
    sha256: str


class Files(BaseModel):
    """Finished files, also of a job at work."""

    files: list[FileInfo]


class UploadInfo(BaseModel):
    """id: sha256 of the bytes."""

    id: str
    name: str
    num_bytes: int
    is_new: bool


class Me(BaseModel):
    """Who is asking."""

    name: str
    user: str
    scope: str
    is_owner: bool
