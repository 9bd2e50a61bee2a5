"""The ledger: every job, attempt, shard and artefact is a row, so any process may die and nothing is lost or doubled.

One orchestrator process owns a ledger (`ownership`); others may read it. A worker's results are accepted only with the
fencing token of its lease, so one that was given up for dead cannot speak again.
"""

from jobs.ledger.database import LedgerError, OwnershipError
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import (
    ArtefactRecord,
    AttemptRecord,
    EventRecord,
    GroupRecord,
    JobRecord,
    Lease,
    NewGroup,
    ShardRecord,
    ShardSummary,
    StaleLease,
    Submission,
)

__all__ = [
    "ArtefactRecord",
    "AttemptRecord",
    "EventRecord",
    "GroupRecord",
    "JobRecord",
    "Lease",
    "Ledger",
    "LedgerError",
    "NewGroup",
    "OwnershipError",
    "ShardRecord",
    "ShardSummary",
    "StaleLease",
    "Submission",
]
