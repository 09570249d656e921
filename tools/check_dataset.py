"""Check a data set before training on it; `python tools/check_dataset.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('check')
