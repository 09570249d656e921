"""Detect objects on images: draw boxes and write what was found.

    %(prog)s IMAGES CONFIG CHECKPOINT --out DIR [--score-thr 0.3] [--device cpu] [--recursive]
        [--one-class-per-box] [--nms IOU] [--batch-size 1] [--num-workers 0]
        [--tiles PIXELS [--overlap 0.2]] [--format coco yolo csv]

IMAGES is an image, a folder, a quoted glob, or a video. They go through the config's own test
pipeline, as in `test`. DIR gets the drawn images, a video for each video, and files in each format:

coco  predictions.json: images, categories, and annotations with image_id, category_id, bbox (x, y,
      width, height in pixels of the image), area, iscrowd and score. Categories have the ids of the
      config's annotation file if that is there and names the same classes, else 1, 2, ...
yolo  labels/: a text file for each image with lines `label x y width height score`, the centre and
      the size of the box as shares of the image's sides
csv   predictions.csv: image, frame, class, score, and corners in pixels of the image

A file that is no readable image, or only a part of one, is reported and skipped; the exit status is
then 1. What is left out of a folder is said. Images of several folders, as a glob or --recursive
may name, keep their paths below the folder that holds them all.

A detector may find one object several times: as several classes (--one-class-per-box keeps the best
of each query) or by several queries (--nms). Evaluation does neither. --tiles looks at images that
are larger than a tile in overlapping tiles, too, where small objects are large enough to be found.
"""

import sys

from ddetr_plugin.cli.options import unit_number, whole_number


def add_arguments(parser):
    add = parser.add_argument
    add('images', help='an image, a folder, a quoted glob, or a video')
    add('config', help='config file, or a name; of a demo run: the one in its work folder')
    add('checkpoint', help='checkpoint file or folder of transformers')
    add('--out', required=True, help='folder for the results')
    add('--score-thr', type=float, default=0.3)
    add('--device', help='default: the GPU if there is one, else the CPU')
    add('--recursive', action='store_true', help='folders below a folder, too')
    add(
        '--one-class-per-box',
        action='store_true',
        help='of the classes that one query found, keep the best alone',
    )
    add(
        '--nms',
        type=unit_number,
        metavar='IOU',
        help='of two boxes of one class that overlap by more than this, keep the better one',
    )
    add('--batch-size', type=whole_number(1), default=1, help='images that the model sees at once')
    add('--num-workers', type=whole_number(0), default=0, help='threads that read images ahead')
    add(
        '--tiles',
        type=whole_number(1),
        metavar='PIXELS',
        help='look at larger images in square tiles of this side, too',
    )
    add(
        '--overlap',
        type=unit_number,
        default=0.2,
        help='share of its side that a tile has in common with the next one',
    )
    add(
        '--format',
        nargs='+',
        metavar='FORMAT',
        default=['coco'],
        help='files of detections to write: coco, yolo, csv',
    )


def run(args, parser):
    from ddetr_plugin.apis.predicting import prepare_prediction, run_prediction
    from ddetr_plugin.compat import MissingMMCVOpError
    from ddetr_plugin.engine.host_memory import keep_freed_memory
    from ddetr_plugin.models.losses.assigner import NotFiniteError

    if args.overlap == 1:
        parser.error('--overlap must be below 1')
    try:
        job = prepare_prediction(
            args.images,
            args.config,
            args.checkpoint,
            args.out,
            args.device,
            args.recursive,
            args.format,
        )
    except (OSError, ValueError, MissingMMCVOpError) as error:
        sys.exit(f'error: {error}')
    if job.detector.device.type == 'cpu':
        keep_freed_memory()
    names = ('score_thr', 'one_class_per_box', 'nms', 'batch_size', 'num_workers', 'tiles')
    options = {name: getattr(args, name) for name in (*names, 'overlap')}
    try:
        done = run_prediction(job, options)
    except (OSError, MissingMMCVOpError, NotFiniteError) as error:
        sys.exit(f'error: {error}')
    print(f'{done.objects} objects on {done.images} images: {args.out}')
    if done.failed:
        sys.exit(1)
