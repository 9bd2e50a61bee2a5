"""The orchestrator as a process: it owns the ledger, decides who runs, and answers its clients over loopback HTTP."""
