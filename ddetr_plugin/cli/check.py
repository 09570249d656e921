"""Check a data set before training on it.

    %(prog)s FOLDER [--config CONFIG] [--json REPORT] [--write OUT]
    %(prog)s --config CONFIG [--json REPORT]

Reads a folder as annotation tools export it (COCO's JSON under any name, YOLO, Pascal VOC or
LabelMe), finds the images, and says in plain words what does not fit. FOLDER may also be one
annotation file in COCO format. What has to be changed for a training, such as ids, is listed; OUT
gets the result in COCO format, and FOLDER stays as it is. With a config, its class names are
compared, too; without a folder, the data is what the config names, boxes or panoptic segments.

Every finding has a file, an id and a remedy; REPORT lists them all. Exit status: 0 if nothing
stands in the way of a training, warnings or not; 1 if something would break or spoil it; 2 if there
is no data set to check.
"""

import sys

from ddetr_plugin.cli.options import add_data_options


def add_arguments(parser):
    parser.add_argument('folder', nargs='?', help='data set, or one annotation file')
    parser.add_argument('--config', help='config to train it with')
    parser.add_argument('--json', metavar='REPORT', help='write all findings here')
    parser.add_argument(
        '--write', metavar='OUT', help='write the data in COCO format into this folder'
    )
    add_data_options(parser)


def run(args, parser):
    from ddetr_plugin.apis.data_checking import check_data
    from ddetr_plugin.data_checks import describe_findings, has_errors, write_report
    from ddetr_plugin.intake.checks import describe, describe_changes

    if not args.folder and not args.config:
        parser.error('name a folder, a config with --config, or both')
    if args.write and not args.folder:
        parser.error('--write needs a folder to read')
    try:
        report = check_data(
            args.folder, args.config, args.boxes, args.keep_super_classes, args.write
        )
        if args.json:
            write_report(args.json, report.findings, dict(folder=args.folder, config=args.config))
    except (OSError, ValueError) as error:
        parser.exit(2, f'error: {error}\n')
    data = report.data
    if data is not None:
        print('\n'.join(describe_changes(data)))
        print(describe(data.train))
        none = 'val: none; tools/demo.py takes a fifth of it instead'
        print(describe(data.val) if data.val else none)
    for line in describe_findings(report.findings):
        print(line)
    if has_errors(report.findings):
        sys.exit(1)
    if not report.checked:
        parser.exit(2, f'error: nothing was checked: {args.config} names no data to look into\n')
    print('nothing stands in the way of a training')
