"""From which checkpoint a run continues, and with which settings."""
