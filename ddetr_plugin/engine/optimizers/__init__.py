"""Mixed precision and parameter groups of optimisers."""
