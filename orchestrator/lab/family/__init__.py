"""The model family on the command line: `dreamkiln train objective=…` and `dreamkiln sample model=…`."""
