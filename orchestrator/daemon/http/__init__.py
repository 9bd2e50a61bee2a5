"""The orchestrator's HTTP API: routes, the calls behind them, and the server that listens."""
