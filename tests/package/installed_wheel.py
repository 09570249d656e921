"""What a new user does with an installed wheel, in a process and a folder of its own.

    python installed_wheel.py ANNOTATIONS IMAGES

Prints a JSON object of what it found, as its last line.
"""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import ddetr_plugin

# isort: split
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.apis import find_config, list_configs
from ddetr_plugin.ops.__main__ import main as report_on_operator
from ddetr_plugin.registry import MODELS

USER_CONFIG = """
_base_ = 'ddetr_plugin::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py'

metainfo = dict(classes=('square', 'bar', 'post'))
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    query_head=dict(num_queries=20),
    bbox_head=dict(num_classes=3, num_layers=1, max_per_img=10),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='',
        ann_file={annotations!r},
        data_prefix=dict(img={images!r}),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2)
param_scheduler = []
val_dataloader = val_cfg = val_evaluator = None
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2, save_best=None), logger=dict(interval=1)
)
log_processor = dict(by_epoch=False)
"""


def main(annotations, images):
    package = Path(ddetr_plugin.__file__).parent
    found = {
        'package': str(package),
        'configs': [record.name for record in list_configs()],
        'typed': (package / 'py.typed').is_file(),
    }
    with contextlib.redirect_stdout(io.StringIO()) as output:
        found['operator_status'] = report_on_operator()
    found['operator'] = output.getvalue()
    config = Config.fromfile(find_config('deformable-detr_r50_16xb2-50e_coco'))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(config.model)
    found['parameters'] = sum(p.numel() for p in model.parameters() if p.requires_grad)

    Path('mine.py').write_text(USER_CONFIG.format(annotations=annotations, images=images))
    # As `mim train` and a shell do.
    script = package / '.mim' / 'tools' / 'train.py'
    sys.argv = [str(script), 'mine.py', '--work-dir', 'work']
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name='__main__')
    (log,) = Path('work').glob('*/vis_data/scalars.json')
    found['losses'] = [json.loads(line)['loss'] for line in log.read_text().splitlines()]

    model = init_detector('work/mine.py', 'work/iter_2.pth', device='cpu')
    found['classes'] = model.dataset_meta['classes']
    sample = inference_detector(model, str(next(Path(images).iterdir())))
    found['boxes'] = sample.pred_instances.bboxes.tolist()
    print(json.dumps(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
