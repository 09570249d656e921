"""Convert weights between implementations; `python tools/convert_checkpoint.py --help` says how."""

from ddetr_plugin.cli import run_command

if __name__ == '__main__':
    run_command('convert')
