"""Say what this machine and this Python have, what is missing, and what to do about it.

    %(prog)s

Versions, how the operator runs, GPUs, and which 16-bit precision pays off on this CPU, which is
measured. Exit status: 0 if all that is required is there, else 1.
"""

import sys


def add_arguments(parser):
    """Takes none."""


def run(args, parser):
    from ddetr_plugin.apis.doctor import diagnose

    missing = []
    for found in diagnose():
        print(f'{found.name:34}{found.found}', flush=True)
        if found.remedy is not None:
            print(f'{"":34}-> {found.remedy}')
            if found.required:
                missing.append(found.name)
    if missing:
        sys.exit(f'error: {", ".join(missing)}: see above')
    print('all that is required is there')
