#!/usr/bin/env bash
# transformers 5.23.0: the target boxes that DETR's image processors make depend on the batch.
#
# Expected: boxes normalised by the size of the image, as in the official DETR and Deformable DETR,
# whose models predict boxes relative to the image without its padding, and as the processor's own
# post_process_object_detection reads predictions with target_sizes (the sizes of the images).
#
# What happens: where a batch has images of different sizes, boxes are divided by the size of the
# padded batch. The same image with the same box has other labels beside a larger image, and labels
# that go through the processor's own post-processing come out as another box. Both processors of
# the family (DETR, Deformable DETR) do so, in both directions and in width and height.
#
# Where it hurts: fine-tuning in mixed batches. The model learns boxes that are too small by a factor
# that is another one for each batch, while inference multiplies by the size of the image alone.
# Way out: do_convert_annotations=False, and normalise by hand; or batches of one size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 numpy pillow
cat > "$folder/show.py" <<'PYTHON'
import importlib
from types import SimpleNamespace

import numpy as np
import torch
import transformers

print('transformers', transformers.__version__, 'torch', torch.__version__)
IMAGE, LARGER = (60, 80), (120, 160)  # height, width
BOX = (20, 10, 40, 30)  # x, y, width, height in pixels of the first image


def target(index):
    box = dict(bbox=BOX, category_id=0, area=1200, iscrowd=0)
    return dict(image_id=index, annotations=[box])


def images(*sizes):
    return [np.zeros((*size, 3), np.uint8) for size in sizes]


for family, name in (('detr', 'DetrImageProcessorPil'),
                     ('deformable_detr', 'DeformableDetrImageProcessorPil')):
    module = importlib.import_module(f'transformers.models.{family}.image_processing_pil_{family}')
    processor = getattr(module, name)(do_resize=False)
    alone = processor(images(IMAGE), [target(0)], return_tensors='pt')['labels'][0]['boxes']
    mixed = processor(images(IMAGE, LARGER), [target(0), target(1)], return_tensors='pt')
    mixed = mixed['labels'][0]['boxes']
    # A model that predicts exactly its targets, read with the size of the image.
    found = []
    for boxes in (alone, mixed):
        logits = torch.tensor([[[9.0, -9.0]]])
        output = SimpleNamespace(logits=logits, pred_boxes=boxes[None])
        result = processor.post_process_object_detection(output, 0.9, target_sizes=[IMAGE])
        found.append([round(x, 3) for x in result[0]['boxes'][0].tolist()])
    print(name)
    print('  target alone           ', alone.tolist(), 'comes back as', found[0])
    print('  beside a larger image  ', mixed.tolist(), 'comes back as', found[1])
    assert found[0] == [20, 10, 60, 40], 'the box does not come back even alone'
    assert torch.allclose(mixed, alone / 2), 'targets no longer depend on the batch'
    assert found[1] == [10, 5, 30, 20], 'the box of a mixed batch comes back otherwise'
print('as described')
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py"
