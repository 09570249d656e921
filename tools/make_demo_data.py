"""Compose the scenes of the demo; `python tools/make_demo_data.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('demo_data')
