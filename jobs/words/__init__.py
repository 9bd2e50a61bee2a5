"""What a sentence may hold, how it is shown, and which of its words a prior knows."""
