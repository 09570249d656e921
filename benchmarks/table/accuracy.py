"""COCO metrics from what trainings and tests leave behind."""

import json
from pathlib import Path

from benchmarks.processes import last_words, run, tool_command
from ddetr_plugin.apis.curves import read_scalars

__all__ = ['METRICS', 'evaluate_checkpoint', 'read_accuracy', 'read_curve', 'read_unit']

METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def _metrics(entry):
    """{'mAP': ...} in 0..1 of a dict such as mmengine logs; None if it holds no AP nor PQ."""
    for prefix in ('coco/', ''):
        if f'{prefix}bbox_mAP' in entry:
            # -1 is COCO's word for "no such boxes".
            found = {name: entry.get(f'{prefix}bbox_{name}', -1) for name in METRICS}
            found['mask_mAP'] = entry.get(f'{prefix}segm_mAP', -1)
            return {name: value for name, value in found.items() if value >= 0}
    quality = entry.get('coco_panoptic/PQ')
    return None if quality is None else {'PQ': quality / 100}


def read_accuracy(path):
    """The newest box AP, or panoptic quality, in a file or work folder.

    Args:
        path: a JSON object of metrics (what a test by mmengine or tools/demo.py writes), a log of
            one object per line (vis_data/scalars.json), or the work folder of a training.

    Returns:
        dict: mAP, mAP_50, mAP_75, mAP_s, mAP_m, mAP_l of boxes, mask_mAP of masks, in 0..1; those
        that are defined. Of a panoptic model PQ alone, in 0..1.

    Raises:
        OSError: there is no such file.
        ValueError: it holds neither.
    """
    path = Path(path)
    if path.is_dir():
        entries = list(read_scalars(path)[1].values())
    else:
        text = path.read_text()
        try:
            whole = json.loads(text)
            entries = whole if isinstance(whole, list) else [whole]
        except ValueError:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
    found = [m for m in map(_metrics, entries) if m is not None]
    if not found:
        raise ValueError(
            f'{path} has no box AP (coco/bbox_mAP) and no PQ (coco_panoptic/PQ); give the JSON '
            'that a test wrote, the vis_data/scalars.json of a training, or its work folder'
        )
    return found[-1]


def read_curve(work_dir):
    """[(epoch or iteration, metrics)] of a training's validations, rising.

    Raises:
        ValueError: there are none.
    """
    curve = [(step, _metrics(entry)) for step, entry in read_scalars(work_dir)[1].items()]
    if not curve:
        raise ValueError(
            f'{work_dir} has no validation with box AP or PQ in its */vis_data/scalars.json; give '
            'the work folder of a training'
        )
    return curve


def read_unit(work_dir):
    """What a training's validations are counted in: 'epoch' or 'iteration'."""
    losses, _ = read_scalars(work_dir)
    return 'epoch' if any('epoch' in entry for entry in losses.values()) else 'iteration'


def evaluate_checkpoint(config_file, checkpoint, work_dir):
    """AP of a checkpoint on the config's test data, by tools/test.py.

    Raises:
        RuntimeError: the test failed, as where there is no data; the message is its last line.
    """
    done = run(tool_command('test', config_file, checkpoint, '--work-dir', work_dir))
    if done.returncode:
        raise RuntimeError(f'{checkpoint} could not be evaluated: {last_words(done)}')
    # mmengine names the folder and the file in it by the time of the start.
    written = max(Path(work_dir).glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return read_accuracy(written)
