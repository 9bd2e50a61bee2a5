"""One job and its run folder: what it leaves there, how it continues, and the manifest that says what was done."""
