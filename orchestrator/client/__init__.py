"""Whoever wants a job done: prepares it, runs it here or asks a running orchestrator, waits, and shows what happens."""
