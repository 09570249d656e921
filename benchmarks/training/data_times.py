"""How long images take to become a batch: what `python -m benchmarks.training` says of data."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import ddetr_plugin  # noqa: F401  before mmdet
from benchmarks.processes import run_apart
from ddetr_plugin.config_files import find_config

COCO_CONFIG = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
PICTURE = (640, 480)  # width, height of most pictures of COCO, pixels
PHOTOGRAPH = (4000, 3000)  # of a camera
BOXES = 8  # of a picture
WAITING_STEPS = 60


def photograph(rng, width, height):
    """(height, width, 3) uint8 with detail at every scale, as pictures of the world have."""
    picture = np.full((height, width, 3), 128, np.float32)
    grain = 4
    while grain <= max(width, height):
        noise = rng.normal(0, 1, (grain, grain, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / grain
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR) * 12
        grain *= 4
    return np.clip(picture, 0, 255).astype(np.uint8)


def make_data(folder, count, size):
    """A data set in COCO format: JPEG pictures of `size` (width, height) with random boxes."""
    rng = np.random.default_rng(0)
    width, height = size
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f'{number:04d}.jpg'
        cv2.imwrite(str(folder / name), photograph(rng, width, height))
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for low, extent in zip(rng.uniform(0, 0.6, (BOXES, 2)), rng.uniform(0.1, 0.4, (BOXES, 2))):
            x, y, w, h = (float(v) for v in np.concatenate([low, extent]) * (*size, *size))
            box = dict(image_id=number, category_id=int(rng.integers(1, 11)), bbox=[x, y, w, h])
            annotations.append(dict(box, id=len(annotations) + 1, area=w * h, iscrowd=0))
    categories = [dict(id=n + 1, name=str(n)) for n in range(10)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations.json').write_text(json.dumps(content))


def pipelines(shape):
    """Training pipelines that make pictures of at most `shape` (height, width).

    Returns:
        dict: 'mmdet' and 'ours' are the steps of both projects' COCO configs, with one size in
            place of random ones; then ours with LoadImageResized.
    """
    import mmdet
    from mmengine.config import Config

    scale = shape[::-1]
    resize = dict(type='Resize', scale=scale, keep_ratio=True)
    folder = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'deformable_detr'
    files = {'mmdet': folder / COCO_CONFIG, 'ours': find_config(COCO_CONFIG)}
    found = {}
    for name, file in files.items():
        steps = Config.fromfile(file).train_dataloader.dataset.pipeline
        found[name] = [resize if step.type == 'RandomChoice' else step for step in steps]
    steps = {step['type']: step for step in found['ours']}
    found['ours, LoadImageResized'] = [
        steps['LoadAnnotations'],
        dict(resize, type='ddetr_plugin.LoadImageResized'),
        steps['RandomFlip'],
        steps['PackDetInputs'],
    ]
    return found


def sample_times(shape, picture_size, rounds, count=4):
    """Milliseconds from a JPEG file to a packed sample, in one process with one thread, in turns.

    Args:
        shape: (height, width) in pixels, see `pipelines`.
        picture_size: (width, height) in pixels of the files.
        rounds: how often each pipeline is timed.
        count: number of files.

    Returns:
        dict: name of the pipeline -> list of `rounds` times of one sample.
    """
    from mmdet.datasets import CocoDataset
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in the configs
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), count, picture_size)
        metainfo = dict(classes=tuple(str(n) for n in range(10)))
        files = dict(data_root=folder, ann_file='annotations.json', data_prefix=dict(img=''))
        with contextlib.redirect_stdout(sys.stderr):  # pycocotools is talkative
            data = CocoDataset(pipeline=[], metainfo=metainfo, **files)
        with DefaultScope.overwrite_default_scope('mmdet'):
            made = {name: Compose(steps) for name, steps in pipelines(shape).items()}
        times = {name: [] for name in made}
        for number in range(rounds + 1):
            for name, pipeline in made.items():
                samples = [data.get_data_info(index) for index in range(count)]
                begin = time.perf_counter()
                for sample in samples:
                    pipeline(sample)
                if number:
                    times[name].append((time.perf_counter() - begin) * 1e3 / count)
    cv2.setNumThreads(threads)
    return times


def training_waits(steps, picture_size=PICTURE):
    """How long the steps of a short training wait for data.

    The demo's config is trained, with the data workers that it names, on JPEG pictures of
    `picture_size` (width, height): larger ones than the demo's own. The first tenth of the steps,
    for which workers start, does not count. mmengine's data_time begins where the step before ends:
    its call of `model.train()`, a millisecond, is in it. Changes global state as a Runner does: for
    a process of its own.

    Returns:
        dict of milliseconds: medians of `data_time_ms` and `step_ms`, and `longest_wait_ms`.
    """
    from ddetr_plugin.apis.config_reading import load_config
    from ddetr_plugin.apis.launch import build_runner

    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), 64, picture_size)
        settings = {
            'model.backbone.pretrained': False,
            'train_dataloader.dataset.data_root': folder,
            'train_dataloader.dataset.ann_file': 'annotations.json',
            'train_dataloader.dataset.data_prefix.img': '',
            'train_cfg.max_iters': steps,
            # Else what the hooks do between two steps would count as waiting.
            'default_hooks.logger.interval': steps,
            'default_hooks.checkpoint.interval': -1,
        }
        for part in ('cfg', 'dataloader', 'evaluator'):
            settings[f'val_{part}'] = settings[f'test_{part}'] = None
        config = load_config(find_config('digits'), settings, Path(folder) / 'work')
        runner = build_runner(config)
        runner.train()
        waits, times = (
            runner.message_hub.get_scalar(f'train/{name}').data[0][steps // 10 :] * 1e3
            for name in ('data_time', 'time')
        )
    return {
        'data_time_ms': round(float(np.median(waits)), 3),
        'longest_wait_ms': round(float(waits.max()), 3),
        'step_ms': round(float(np.median(times)), 1),
    }


def waits_apart():
    """`training_waits` of WAITING_STEPS in a process of its own.

    Raises:
        SystemExit: it failed; the message is the end of what it wrote.
    """
    try:
        return run_apart(__name__, torch.get_num_threads())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f'the short training failed:\n{error.stderr[-2000:]}') from error


def main(threads, steps=WAITING_STEPS, picture_size=PICTURE):
    """The process of `waits_apart`: prints what `training_waits` finds."""
    from mmdet.utils import register_all_modules

    torch.set_num_threads(threads)
    register_all_modules()
    print(json.dumps(training_waits(steps, picture_size)))


if __name__ == '__main__':
    main(int(sys.argv[1]))
