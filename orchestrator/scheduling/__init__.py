"""Who runs next, and why: pure policies. A view of the queue goes in, decisions with reasons come out; no clock, no Ray."""

from orchestrator.scheduling.model import Capacity, GpuNeed, Policy, PriorView, QueuedJob, RunningJob, View
from orchestrator.scheduling.schedule import NUM_LOOKAHEAD, Plan, schedule

__all__ = ["NUM_LOOKAHEAD", "Capacity", "GpuNeed", "Plan", "Policy", "PriorView", "QueuedJob", "RunningJob", "View", "schedule"]
