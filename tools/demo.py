"""Train on scenes or on your own images; `python tools/demo.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('demo')
