"""Tokenizer and OpenCLIP towers, in the published formats."""
