"""Necks that mmdet does not have."""
