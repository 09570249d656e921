"""Checkpoint files of every kind, read and written without running them."""
