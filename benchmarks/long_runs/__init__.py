"""Runs of many minutes: memory that must not grow, accuracy in 16 bits."""
