"""The command line `dreamkiln`."""
