"""Evaluate a checkpoint on the test data of a config; `python tools/test.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('test')
