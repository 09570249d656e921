"""Rows of class heads on their way between sets of classes."""
