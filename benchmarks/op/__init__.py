"""The operator beside its peers; see run.py."""
