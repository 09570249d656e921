"""Train a model from a config; `python tools/train.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('train')
