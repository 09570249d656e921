"""Files of the work folder that are complete or not there, and its lock."""
