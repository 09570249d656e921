"""Whether the source's own library computes the same numbers."""
