#!/usr/bin/env bash
# mmdet 3.3.0, CocoMetric(classwise=True) and CocoPanopticMetric(classwise=True).
#
# One would expect: the AP beside a class's name is that class's, whatever the order of
#   `categories` in the annotation file, which the COCO format leaves open.
# What happens: pycocotools sorts the category ids (np.unique) before it fills its table of
#   precisions; mmdet reads that table by the position of the class in the file. With categories
#   7 and 2 the two classes get each other's AP. PQ of classes is paired by position, too: where
#   the data set takes a part of the file's classes, a class gets the PQ of another. No warning;
#   mAP and PQ themselves are right.
# Where it could hurt: files whose categories are not sorted by id (merged or filtered data sets,
#   exports sorted by name). People drop, re-label or re-weigh the wrong class.
#
# Installs public packages into a temporary folder, and exits non-zero if mmdet behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip --quiet --disable-pip-version-check"
$pip install 'setuptools<81' wheel
$pip install 'torch==2.13.0' 'numpy==2.4.6' 'pycocotools==2.0.11' 'mmengine==0.10.7' \
    'mmcv-lite==2.1.0' 'opencv-python-headless' scipy shapely terminaltables tqdm matplotlib \
    importlib_metadata
$pip install --no-deps 'mmdet==3.3.0' 'panopticapi-lite==0.2.0'

cat > "$folder/show.py" <<'PYTHON'
import contextlib
import io
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

# mmcv-lite has no compiled operators; mmdet wants to import them, and nothing here calls one.
extension = types.ModuleType('mmcv._ext')
extension.__getattr__ = lambda name: None
extension.__spec__ = None
sys.modules['mmcv._ext'] = extension

import numpy as np
import torch
from mmcv import imwrite
from mmdet.evaluation import CocoMetric, CocoPanopticMetric
from mmdet.evaluation.metrics import coco_panoptic_metric

for name in ('mmdet', 'mmengine', 'mmcv-lite', 'pycocotools', 'panopticapi-lite', 'torch'):
    print(name, version(name))


def quietly(call):
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def boxes(categories):
    """AP of each class where the person is found perfectly, and the car not at all."""
    ids = {c['name']: c['id'] for c in categories}
    content = dict(
        images=[dict(id=1, file_name='1.jpg', width=200, height=200)],
        annotations=[
            dict(id=1, image_id=1, category_id=ids['person'], bbox=[10, 10, 50, 80], area=4000,
                 iscrowd=0),
            dict(id=2, image_id=1, category_id=ids['car'], bbox=[100, 100, 80, 50], area=4000,
                 iscrowd=0),
        ],
        categories=categories,
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'truth.json'
        file.write_text(json.dumps(content))
        metric = CocoMetric(ann_file=str(file), classwise=True)
    metric.dataset_meta = dict(classes=('person', 'car'))
    # mmdet's labels number the categories in the order of the file.
    label = [c['name'] for c in categories].index('person')
    found = dict(bboxes=torch.tensor([[10.0, 10, 60, 90]]), scores=torch.tensor([0.9]),
                 labels=torch.tensor([label]))
    metric.process({}, [dict(img_id=1, ori_shape=(200, 200), pred_instances=found)])
    results = metric.evaluate(1)
    return {name: float(results[f'coco/{name}_precision']) for name in ('person', 'car')}


def segments(classes):
    """PQ of each of `classes` where cars and the sky are found perfectly, in a file of three."""
    names = ('person', 'car', 'sky')
    ids = np.zeros((40, 40), np.int64)
    ids[:20], ids[20:] = 3, 2  # sky over a car; nobody is there
    predicted = np.where(ids == 3, classes.index('sky'), classes.index('car') + 1000)
    printed = []
    coco_panoptic_metric.print_panoptic_table = lambda parts, named, logger: printed.append(named)
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        imwrite(np.stack([ids * 0, ids * 0, ids], -1).astype(np.uint8), str(folder / '1.png'))
        infos = [dict(id=i, category_id=i, iscrowd=0, area=800, bbox=[0, 0, 1, 1]) for i in (2, 3)]
        content = dict(
            images=[dict(id=1, file_name='1.jpg', width=40, height=40)],
            annotations=[dict(image_id=1, file_name='1.png', segments_info=infos)],
            categories=[dict(id=i, name=n, isthing=int(i < 3)) for i, n in enumerate(names, 1)],
        )
        (folder / 'truth.json').write_text(json.dumps(content))
        metric = CocoPanopticMetric(ann_file=str(folder / 'truth.json'), seg_prefix=str(folder),
                                    classwise=True)
        metric.dataset_meta = dict(classes=classes)
        metric.process({}, [dict(img_id=1, img_path='1.jpg', ori_shape=(40, 40),
                                 pred_panoptic_seg=dict(sem_seg=torch.from_numpy(predicted)[None]))])
        results = metric.evaluate(1)
    return {k: float(v['pq']) for k, v in printed[0].items()}, float(results['coco_panoptic/PQ'])


person, car = dict(id=7, name='person'), dict(id=2, name='car')
by_id, by_name = quietly(lambda: boxes([car, person])), quietly(lambda: boxes([person, car]))
print('only the person is found; AP of each class')
print('  categories listed by rising id:', by_id)
print('  the same, person listed first: ', by_name)
of_classes, whole = quietly(lambda: segments(['car', 'sky']))
print('car and sky are found, of a file that also has person: PQ', whole, 'of classes', of_classes)
one = lambda value: round(value, 3) == 1
assert one(by_id['person']) and by_id['car'] == 0, 'the premise'
assert by_name['person'] == 0 and one(by_name['car']), 'mmdet pairs classes with their own AP now'
assert one(whole / 100) and of_classes == {'car': 0.0, 'sky': 1.0}, 'and with their own PQ'
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py"
echo 'mmdet pairs classes and precisions by position'
