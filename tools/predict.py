"""Detect objects on images; `python tools/predict.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('predict')
