"""What each implementation calls its weights."""
