"""Whole models: training steps and predictions of ours beside mmdet's; see run.py."""
