"""The paper's table: size, cost, speed and accuracy of detectors; see run.py."""
