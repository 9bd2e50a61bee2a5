"""One verb of the command line each: `NAME`, `HELP` and `command`, or a typer application of its own."""
