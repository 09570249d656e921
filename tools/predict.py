"""Detect objects on pictures: draw boxes and write COCO-style JSON.

    python tools/predict.py IMAGES CONFIG CHECKPOINT --out DIR [--score-thr 0.3] [--device cpu]

IMAGES is a picture, a folder, or a quoted glob. DIR gets the drawn pictures and predictions.json in
COCO format: images, categories, and annotations with image_id, category_id, bbox (x, y, width,
height in pixels of the picture), area, iscrowd and score. Categories have the ids of the config's
annotation file if that is there and names the same classes, else 1, 2, ... A file that is no
readable picture, or only a part of one, is reported and skipped; the exit status is then 1.
Pictures of several folders, as a glob may name, keep their paths below the folder that holds them
all.
"""

import argparse
import glob
import json
import os
import sys
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np
import report
import torch

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.checkpoints import CheckpointFileError, install_checkpoint_loader
from ddetr_plugin.compat import MissingMMCVOpError, require_mmcv_operators
from ddetr_plugin.engine.foreign_checkpoints import dataset_classes
from ddetr_plugin.engine.launch import keep_freed_memory, load_config, require_checkpoint

# isort: split
import mmdet.datasets  # registers transforms
import mmdet.models  # noqa: F401  registers models
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}


def find_pictures(pattern):
    """Files named by a path, a folder (pictures in it, not below) or a glob; sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    elif path.is_file():
        found = [path]
    else:
        paths = map(Path, glob.glob(str(pattern), recursive=True))
        found = sorted(p for p in paths if p.is_file())
    if not found:
        raise FileNotFoundError(f'{pattern} is no picture, no folder with pictures, and no glob')
    return found


def name_results(pictures, out):
    """What the results of each picture are called.

    Returns:
        list of (path, name below the folder that holds all pictures, file to draw to).

    Raises:
        ValueError: a picture would be overwritten.
    """
    folder = Path(os.path.commonpath([path.absolute().parent for path in pictures]))
    named = []
    for path in pictures:
        name = path.absolute().relative_to(folder)
        # Its own suffix where that can be drawn to, so that a.jpg and a.png stay apart.
        drawable = name.suffix.lower() in ('.jpg', '.jpeg', '.png')
        named.append((path, name, out / name if drawable else out / f'{name}.png'))
    taken = {path.resolve(): path for path in pictures}
    for path, _, target in named:
        other = taken.setdefault(target.resolve(), path)
        if other in pictures and other.resolve() == target.resolve():
            raise ValueError(f'{target} would be overwritten; name another folder with --out')
        if other != path:
            raise ValueError(
                f'{other} and {path} would both be drawn to {target}; predict one of them alone'
            )
    return named


def read_picture(path):
    """A picture as (H, W, 3) uint8, BGR; grey, palette and alpha pictures, too.

    Raises:
        ValueError: it is not a picture, or not a whole one.
    """
    try:
        # OpenCV fills what is missing of a truncated file with grey; Pillow refuses it.
        with Image.open(path) as file:
            file.load()
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    # What decoders raise depends on the bytes; Pillow's even RuntimeError.
    except Exception as error:
        raise ValueError(' '.join(str(error).split()) or type(error).__name__) from error
    if picture is None:
        raise ValueError('OpenCV cannot decode it')
    return picture


def class_names(checkpoint, config):
    """The classes a checkpoint was trained on; from the config where it does not say.

    Raises:
        ValueError: there are none, or another number than the model has.
    """
    meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    classes = meta.get('classes') or config.get('metainfo', {}).get('classes')
    if classes is None:
        classes = dataset_classes(config)
    # R-CNNs have their box head, or one for each stage, in roi_head.
    head = config.model.get('roi_head', config.model).bbox_head
    count = (head[0] if isinstance(head, list) else head).num_classes
    if classes is None or len(classes) != count:
        raise ValueError(
            f'the model has {count} classes, but checkpoint and config name '
            f'{0 if classes is None else len(classes)}; set metainfo = dict(classes=...) in the '
            'config'
        )
    return [str(name) for name in classes]


def load_model(config, checkpoint_file, device):
    """The detector with its weights, and the names of its classes.

    Raises:
        ValueError: weights or classes do not fit the config.
        MissingMMCVOpError: the model needs full mmcv, and this is mmcv-lite.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    model = MODELS.build(config.model)
    require_mmcv_operators(model)
    install_checkpoint_loader()
    try:
        checkpoint = load_checkpoint(model, str(checkpoint_file), map_location='cpu', strict=True)
    except CheckpointFileError:
        raise
    # What torch's unpickler stumbles over depends on the bytes that are no pickle.
    except (UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f'{checkpoint_file} is not a checkpoint, or holds more than weights and what the '
            'Runner adds to them; it was not loaded'
        ) from error
    except RuntimeError as error:
        # The list of all weights that do not fit can fill a screen.
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'{checkpoint_file} does not fit the model of the config; give the config that the '
            f'training left in its work folder: {reason[:300]}'
        ) from error
    return model.to(device).eval(), class_names(checkpoint, config)


def category_ids(config, classes):
    """The category id of each class: of the config's test or training annotations, else 1, 2, ...

    Args:
        config: its datasets may name annotation files; they need not exist.
        classes: names, in the order of the model.
    """
    for split in ('test', 'val', 'train'):
        dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        file = dataset.get('ann_file')
        if not file:
            continue
        path = Path(dataset.get('data_root') or '') / file
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding='utf-8'))
        ids = {str(c['name']): c['id'] for c in content.get('categories', [])}
        if set(classes) <= set(ids):
            return [ids[name] for name in classes]
    return list(range(1, len(classes) + 1))


def build_pipeline(config):
    """The config's test pipeline for pictures in memory, without annotations.

    Raises:
        ValueError: the config has none.
    """
    if not config.get('test_dataloader'):
        raise ValueError(
            'the config has no test_dataloader, whose pipeline prepares the pictures; give the '
            'config that the training left in its work folder'
        )
    steps = []
    for step in config.test_dataloader.dataset.pipeline:
        if step.type.endswith('LoadImageFromFile'):
            steps.append(dict(type='mmdet.LoadImageFromNDArray'))
        elif not step.type.endswith('LoadAnnotations'):
            steps.append(step)
    return Compose([TRANSFORMS.build(step) for step in steps])


def detect(model, pipeline, picture, score_thr):
    """Detections on one picture (H, W, 3) uint8, BGR.

    Returns:
        list of ((x, y, w, h) in pixels of the picture, class index, score), best first, clipped
        to the picture.
    """
    data = pseudo_collate([pipeline(dict(img=picture, img_id=0))])
    with torch.no_grad():
        found = model.test_step(data)[0].pred_instances.cpu().numpy()
    height, width = picture.shape[:2]
    rows = []
    for box, label, score in zip(found.bboxes, found.labels, found.scores):
        x1, x2 = np.clip(box[[0, 2]], 0, width)
        y1, y2 = np.clip(box[[1, 3]], 0, height)
        if score >= score_thr and x2 > x1 and y2 > y1:
            rows.append(([float(v) for v in (x1, y1, x2 - x1, y2 - y1)], int(label), float(score)))
    return rows


def reason_of(error, picture):
    """Why a picture could not be predicted, in a line."""
    height, width = picture.shape[:2]
    size = f'{width} x {height} pixels'
    if isinstance(error, cv2.error) and error.func == 'resize':
        return f'{size}: no width or height is left at the size that the network sees'
    return f'{size}: {" ".join(str(error).split())[:300] or type(error).__name__}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('images', help='a picture, a folder, or a quoted glob')
    parser.add_argument('config', help='config file; of a demo run: the one in its work folder')
    parser.add_argument('checkpoint', help='checkpoint file or folder of transformers')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument('--score-thr', type=float, default=0.3)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(f'error: --device {args.device} cannot be used: {str(error).splitlines()[0]}')
    if args.device == 'cpu':
        keep_freed_memory()
    try:
        pictures = name_results(find_pictures(args.images), args.out)
        config = load_config(args.config)
        require_checkpoint(args.checkpoint)
        model, classes = load_model(config, args.checkpoint, args.device)
        pipeline = build_pipeline(config)
        ids = category_ids(config, classes)
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f'--out {args.out} is a file; name a folder')
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, MissingMMCVOpError) as error:
        sys.exit(f'error: {error}')
    images, annotations = [], []
    for image_id, (path, name, target) in enumerate(pictures, start=1):
        try:
            picture = read_picture(path)
        except ValueError as error:
            print(f'{path}: not a readable picture, skipped ({error})')
            continue
        try:
            found = detect(model, pipeline, picture, args.score_thr)
        except MissingMMCVOpError as error:
            sys.exit(f'error: {error}')
        # No picture may end the others of its folder, not even one too large for the memory.
        except (cv2.error, ValueError, RuntimeError, MemoryError) as error:
            print(f'{path}: cannot be predicted, skipped ({reason_of(error, picture)})')
            continue
        height, width = picture.shape[:2]
        images.append(dict(id=image_id, file_name=name.as_posix(), width=width, height=height))
        for box, label, score in found:
            annotation = dict(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=ids[label],
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
                score=score,
            )
            annotations.append(annotation)
        rows = [(box, label, f'{classes[label]} {score:.2f}') for box, label, score in found]
        scale = max(1, -(-report.MIN_WIDTH // picture.shape[1]))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target), report.draw_boxes(picture, rows, scale)):
            sys.exit(f'error: {target} cannot be written; is the disk full?')
        print(f'{path}: {len(found)} objects')
    categories = [dict(id=i, name=name) for i, name in zip(ids, classes)]
    content = dict(images=images, categories=categories, annotations=annotations)
    (args.out / 'predictions.json').write_text(json.dumps(content, indent=1) + '\n')
    print(f'{len(annotations)} objects on {len(images)} pictures: {args.out}')
    if len(images) < len(pictures):
        sys.exit(1)


if __name__ == '__main__':
    main()
