"""What a job is: specs, events, recipes, the ledger. No files, no Ray."""
