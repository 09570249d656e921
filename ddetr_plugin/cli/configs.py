"""List the configs of this package.

    %(prog)s

Wherever a command takes a config, it takes such a name, too. AP is box AP and PQ panoptic quality
on COCO val2017, as others published them; nothing was trained on COCO here.
"""

import sys


def add_arguments(parser):
    """Takes none."""


def run(args, parser):
    from ddetr_plugin.apis.configs import list_configs

    try:
        records = list_configs()
    except OSError as error:
        sys.exit(f'error: {error}')
    width = max(len(record.name) for record in records)
    print(f'{"name":{width}}  parameters    AP    PQ  needs')
    for record in records:
        cells = (
            f'{record.name:{width}}',
            f'{_number(record.parameters, ","):>10}',
            f'{_number(record.published_ap, ".1f"):>4}',
            f'{_number(record.published_pq, ".1f"):>4}',
            ', '.join(record.needs),
        )
        print('  '.join(cells).rstrip())


def _number(value, form):
    return '' if value is None else format(value, form)
