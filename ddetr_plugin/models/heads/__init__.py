"""Where queries come from, and what is read from them: classes, boxes, masks."""
