"""Prompt tables: read row by row, checked, and joined with the pictures that their rows name."""
