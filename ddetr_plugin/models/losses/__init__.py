"""Matching of predictions and ground truths, and the losses of matched pairs."""
