"""What happens between the steps of a run, as mmengine's hooks."""
