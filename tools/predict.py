"""Detect objects in pictures with a trained model.

    python tools/predict.py IMAGES CONFIG CHECKPOINT --out DIR [--score-thr 0.3]

IMAGES is a picture, a folder (its pictures, not those of subfolders) or a quoted glob such as
'shots/**/*.jpg'. CONFIG is best the copy that the training left in its work folder. DIR gets
pictures/, with the boxes drawn, and predictions.json in COCO format: `images`, `categories` and
`annotations`; of these, each has `file_name`, `category_id` (1 for the first class),
`category_name`, `bbox` as [x, y, width, height] in pixels of the original picture, and `score`.

Pictures that cannot be read are named and left out; the exit status is 1 if no picture was left.
"""

import argparse
import glob
import json
import os
import sys
from pathlib import Path
from pickle import UnpicklingError

import cv2
import mmcv
import report
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from PIL import Image

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.engine import launch
from ddetr_plugin.registry import MODELS

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')


def find_pictures(images):
    """The pictures that a command line names.

    Args:
        images: a file, a folder or a glob.

    Returns:
        (folder, names): the deepest folder that holds all of them, and their paths in it, sorted.

    Raises:
        FileNotFoundError: nothing is there, or no picture is in it.
    """
    path = Path(images)
    if path.is_file():
        return path.parent, [Path(path.name)]
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not found:
            raise FileNotFoundError(
                f'no picture lies directly in {images} (looked for {", ".join(SUFFIXES)}); for '
                f"those in its subfolders give '{path}/**/*.jpg'"
            )
    else:
        found = [Path(p) for p in glob.glob(str(images), recursive=True) if Path(p).is_file()]
        if not found:
            raise FileNotFoundError(f'{images} is neither a file nor a folder, nor matches any')
    folder = Path(os.path.commonpath([p.parent.absolute() for p in found]))
    return folder, sorted(p.absolute().relative_to(folder) for p in found)


def read_checkpoint(path):
    """(weights, class names or None) of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is something else, or cannot be loaded safely.
    """
    launch.require_file(path, 'checkpoint')
    try:
        content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    except (UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'{path} is not a checkpoint that can be loaded: {reason}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} is not a checkpoint: it holds a {type(content).__name__}')
    classes = content.get('meta', {}).get('dataset_meta', {}).get('classes')
    return content.get('state_dict', content), classes and [str(name) for name in classes]


def classes_of_config(config):
    """The class names that a config gives its test data, or None."""
    from mmdet.registry import DATASETS

    dataset = config.get('test_dataloader', {}).get('dataset', {})
    while 'dataset' in dataset:  # a wrapper
        dataset = dataset.dataset
    metainfo = dataset.get('metainfo') or config.get('metainfo') or {}
    classes = metainfo.get('classes')
    if classes is None and dataset.get('type'):
        classes = getattr(DATASETS.get(dataset.type), 'METAINFO', {}).get('classes')
    return classes and [str(name) for name in classes]


def load_model(config, checkpoint, device):
    """The model of a config with the weights of a checkpoint.

    Returns:
        (model in evaluation mode, list of class names).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the weights do not fit the model, or the class names are unknown.
    """
    weights, classes = read_checkpoint(checkpoint)
    head = config.model.get('bbox_head', {})
    count = head.get('num_classes') if isinstance(head, dict) else None
    advice = 'give the config that the training left in its work folder'
    beside = sorted(Path(checkpoint).parent.glob('*.py'))
    if beside:
        advice += f', such as {beside[0]}'
    if classes and count is not None and len(classes) != count:
        raise ValueError(
            f'{checkpoint} was trained on {len(classes)} classes ({", ".join(classes[:5])}'
            f'{", ..." if len(classes) > 5 else ""}), the model of the config has {count}; {advice}'
        )
    classes = classes or classes_of_config(config)
    if not classes or count is not None and len(classes) != count:
        raise ValueError(
            f'the checkpoint names no classes, and the config names {len(classes or ())} for a '
            f'model of {count}; add test_dataloader.dataset.metainfo.classes to the config'
        )
    model = MODELS.build(config.model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = '; '.join(line.strip() for line in str(error).splitlines()[1:3])
        raise ValueError(
            f'{checkpoint} does not fit the model of the config ({first}); {advice}'
        ) from error
    return model.to(device).eval(), classes


def read_picture(path):
    """The picture as the network will see it: (H, W, 3) uint8, BGR.

    Raises:
        ValueError: the file is not a picture, or only a part of one.
    """
    try:
        # OpenCV fills what is missing of a truncated file with grey; Pillow refuses it.
        with Image.open(path) as picture:
            picture.load()
        picture = mmcv.imread(str(path), 'color')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if picture is None:
        raise ValueError('OpenCV cannot decode it')
    return picture


def read_pictures(folder, names, pipeline):
    """Yields (name, picture, network input) of every picture that can be used; names the others."""
    for number, name in enumerate(names):
        path = str(folder / name)
        try:
            picture = read_picture(path)
            data = pipeline(dict(img_path=path, img_id=number))
        # Whatever a picture does to a transform, the others of its folder are still to come.
        except Exception as error:
            print(f'left out: {path}: {error}', file=sys.stderr)
            continue
        yield name, picture, data


def in_batches(items, size):
    """Lists of `size` consecutive items; the last may be shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def detect(model, inputs, score_thr):
    """Detections of a batch: per picture, rows (x, y, w, h, score, class index), best first."""
    found = []
    for sample in model.test_step(pseudo_collate(inputs)):
        instances = sample.pred_instances
        instances = instances[instances.scores >= score_thr].cpu()
        boxes = instances.bboxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), instances.scores.tolist(), instances.labels.tolist())
        found.append(sorted(((*box, score, label) for box, score, label in rows), key=_descending))
    return found


def _descending(row):
    return -row[4]


def add_to(content, name, picture, rows):
    """Adds a picture and its detections, as rows of `detect`, to a dict in COCO format."""
    image_id = len(content['images']) + 1
    height, width = picture.shape[:2]
    content['images'].append(
        dict(id=image_id, file_name=name.as_posix(), width=width, height=height)
    )
    for *box, score, label in rows:
        content['annotations'].append(
            dict(
                id=len(content['annotations']) + 1,
                image_id=image_id,
                file_name=name.as_posix(),
                category_id=label + 1,
                category_name=content['categories'][label]['name'],
                bbox=[round(v, 2) for v in box],
                area=round(box[2] * box[3], 2),
                iscrowd=0,
                score=round(score, 4),
            )
        )


def draw(path, picture, rows, classes):
    """Writes a picture with its detections, rows of `detect`."""
    boxes = [(row[:4], row[5], f'{classes[row[5]]} {row[4]:.2f}') for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), report.draw_boxes(picture, boxes, 1)):
        raise OSError(f'cannot write {path}')


def predict(folder, names, config, checkpoint, out, score_thr=0.3, device='cpu', batch_size=4):
    """Detects, draws and writes; see the head of this file.

    Args:
        folder, names: as `find_pictures` returns them.
        config: mmengine Config with `model` and `test_dataloader`.
        checkpoint: file, as the Runner writes it.
        out: folder to write to; made if need be.
        score_thr: detections with a lower score are left out.
        device: of torch.
        batch_size: pictures per step; they are padded to a common size.

    Returns:
        dict: what predictions.json holds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint does not fit, or a picture would be overwritten.
    """
    out = Path(out)
    init_default_scope(config.get('default_scope', 'mmdet'))
    targets = {name: out / 'pictures' / drawn_name(name) for name in names}
    for name, target in targets.items():
        if target.resolve() == (folder / name).resolve():
            raise ValueError(f'--out {out} would overwrite {folder / name}; name another folder')
    model, classes = load_model(config, checkpoint, device)
    pipeline = Compose(config.test_dataloader.dataset.pipeline)
    categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
    content = dict(images=[], annotations=[], categories=categories)
    for batch in in_batches(read_pictures(folder, names, pipeline), batch_size):
        results = detect(model, [data for _, _, data in batch], score_thr)
        for (name, picture, _), rows in zip(batch, results):
            add_to(content, name, picture, rows)
            draw(targets[name], picture, rows, classes)
            print(f'{name}: {len(rows)} found', flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'predictions.json').write_text(json.dumps(content, indent=1))
    return content


def drawn_name(name):
    """Where a picture is drawn to: its own name, as PNG unless it is a JPEG."""
    lossy = name.suffix.lower() in ('.jpg', '.jpeg', '.png')
    return name if lossy else name.with_name(name.name + '.png')


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', help='a picture, a folder or a quoted glob')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, type=Path, help='folder for the results')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score; default 0.3')
    parser.add_argument('--device', help='such as cpu or cuda:1; default: a GPU if there is one')
    parser.add_argument('--batch-size', type=int, default=4, help='pictures per step; default 4')
    launch.add_config_overrides(parser)
    args = parser.parse_args(arguments)
    if args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got {args.batch_size}')
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must be between 0 and 1, got {args.score_thr}')
    return parser, args


def main(arguments=None):
    parser, args = parse_args(arguments)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cpu':
        launch.keep_freed_memory()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {device} cannot be used: {str(error).splitlines()[0]}')
    try:
        folder, names = find_pictures(args.images)
        config = launch.load_config(args.config, args.cfg_options)
        content = predict(
            folder,
            names,
            config,
            args.checkpoint,
            args.out,
            args.score_thr,
            device,
            args.batch_size,
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(
        f'{len(content["annotations"])} objects in {len(content["images"])} of {len(names)} '
        f'pictures: see {args.out / "predictions.json"} and {args.out / "pictures"}'
    )
    if not content['images']:
        sys.exit(1)


if __name__ == '__main__':
    main()
