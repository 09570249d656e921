"""Data folders as annotation tools leave them: names and structure of each tool, on tiny images.

Every function of LAYOUTS writes the same images and boxes into a folder in its tool's way, and
returns which images are of which split. Nothing here is a real person's data.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

LAYOUTS = {}


class Item(NamedTuple):
    """An image and its objects: (class, [x, y, width, height])."""

    path: Path
    width: int
    height: int
    objects: list


def read_items(coco) -> list[Item]:
    """What `tiny_coco` holds."""
    content = json.loads(coco.annotations.read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    return [
        Item(
            coco.images / image['file_name'],
            image['width'],
            image['height'],
            [
                (names[a['category_id']], a['bbox'])
                for a in content['annotations']
                if a['image_id'] == image['id']
            ],
        )
        for image in content['images']
    ]


def layout(function):
    LAYOUTS[function.__name__] = function
    return function


def outline(box):
    """[x, y, x, y, ...] around a box."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def put(item, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(item.path, path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines))


CLASSES = ['square', 'bar', 'post']


def coco(items, names, image=0, annotation=0, category=0, masks=False, **fields):
    """COCO's dict of items under these names, numbered from these ids; `fields` are constant."""
    content = dict(info={}, licenses=[], images=[], annotations=[], categories=[])
    for number, name in enumerate(CLASSES):
        content['categories'].append(dict(id=number + category, name=name, supercategory=''))
    for number, (item, name) in enumerate(zip(items, names)):
        entry = dict(id=number + image, file_name=name, width=item.width, height=item.height)
        content['images'].append(entry)
        for label, box in item.objects:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + annotation,
                    image_id=number + image,
                    category_id=CLASSES.index(label) + category,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                    segmentation=[outline(box)] if masks else [],
                    **fields,
                )
            )
    return content


def halves(items):
    return dict(train=items[:6], val=items[6:])


def numbered(items):
    return [f'{number:04d}.png' for number in range(len(items))]


@layout
def roboflow_coco(folder, items):
    splits = dict(train=items[:5], valid=items[5:7], test=items[7:])
    for word, part in splits.items():
        names = [f'{i.path.stem}_png.rf.{n:032x}.png' for n, i in enumerate(part)]
        content = coco(part, names, category=1)
        group = dict(id=0, name='shapes', supercategory='none')
        for category in content['categories']:
            category['supercategory'] = 'shapes'
        content['categories'].insert(0, group)
        write_json(folder / word / '_annotations.coco.json', content)
        for item, name in zip(part, names):
            put(item, folder / word / name)
    return dict(train=splits['train'], val=splits['valid'])


def cvat(items, names):
    attributes = dict(occluded=False, rotation=0.0)
    return coco(items, names, 1, 1, 1, attributes=attributes)


@layout
def cvat_task(folder, items):
    names = numbered(items)
    write_json(folder / 'annotations/instances_default.json', cvat(items, names))
    for item, name in zip(items, names):
        put(item, folder / 'images/default' / name)
    return dict(train=items)


@layout
def cvat_flat(folder, items):
    names = numbered(items)
    write_json(folder / 'annotations/instances_default.json', cvat(items, names))
    for item, name in zip(items, names):
        put(item, folder / 'images' / name)
    return dict(train=items)


@layout
def cvat_project(folder, items):
    splits = halves(items)
    for word, part in zip(('Train', 'Validation'), splits.values()):
        names = numbered(part)
        write_json(folder / f'annotations/instances_{word}.json', cvat(part, names))
        for item, name in zip(part, names):
            put(item, folder / 'images' / word / name)
    return splits


@layout
def label_studio(folder, items):
    names = [f'{n:08x}-{item.path.name}' for n, item in enumerate(items)]
    content = coco(items, [f'images\\{name}' for name in names], ignore=0)
    write_json(folder / 'result.json', content)
    for item, name in zip(items, names):
        put(item, folder / 'images' / name)
    return dict(train=items)


@layout
def label_studio_media(folder, items):
    names = [f'..\\..\\label-studio\\data\\media\\upload\\1\\0a1b2c3d-{i.path.name}' for i in items]
    write_json(folder / 'result.json', coco(items, names, ignore=0))
    for item in items:
        put(item, folder / 'originals' / item.path.name)
    return dict(train=items)


@layout
def label_studio_local_files(folder, items):
    names = [f'/data/local-files/?d=pool%5Ca{n % 2}/{n // 2}.png' for n in range(len(items))]
    write_json(folder / 'result.json', coco(items, names, ignore=0))
    for number, item in enumerate(items):
        # The same names in two folders: only the whole path says which.
        put(item, folder / 'pool' / f'a{number % 2}' / f'{number // 2}.png')
    return dict(train=items)


@layout
def label_studio_urls(folder, items):
    names = [f'http://localhost:8080/data/upload/1/my%20{i.path.name}?x=1' for i in items]
    write_json(folder / 'result.json', coco(items, names, ignore=0))
    for item in items:
        put(item, folder / 'images' / f'my {item.path.name}')
    return dict(train=items)


@layout
def fiftyone(folder, items):
    names = numbered(items)
    write_json(folder / 'labels.json', coco(items, names, 1, 1, 0))
    for item, name in zip(items, names):
        put(item, folder / 'data' / name)
    return dict(train=items)


@layout
def fiftyone_splits(folder, items):
    splits = halves(items)
    for word, part in zip(('train', 'validation'), splits.values()):
        fiftyone(folder / word, part)
    return splits


@layout
def makesense(folder, items):
    content = coco(items, [i.path.name for i in items], 1, 0, 1, masks=True)
    content['info'] = dict(description='my-project-name')
    write_json(folder / 'labels_my-project-name_2024-01-02-03-04-05.json', content)
    for item in items:
        put(item, folder / item.path.name)
    return dict(train=items)


@layout
def labelme_converter(folder, items):
    content = coco(items, [f'JPEGImages/{i.path.name}' for i in items], 0, 0, 1)
    content['categories'].insert(0, dict(supercategory=None, id=0, name='_background_'))
    for annotation in content['annotations']:
        # The two corners of a rectangle, as it writes them.
        x, y, w, h = annotation['bbox']
        annotation['segmentation'] = [[x, y, x + w, y + h]]
    write_json(folder / 'annotations.json', content)
    for item in items:
        put(item, folder / 'JPEGImages' / item.path.name)
        put(items[0], folder / 'Visualization' / item.path.name)
    return dict(train=items)


@layout
def supervisely(folder, items):
    names = numbered(items)
    write_json(folder / 'ds0/annotations/instances.json', coco(items, names, 1, 0, 1, masks=True))
    for item, name in zip(items, names):
        put(item, folder / 'ds0/img' / name)
    return dict(train=items)


@layout
def sahi_slices(folder, items):
    names = [f'{i.path.stem}_0_0_64_48.png' for i in items]
    write_json(folder / 'train_640_02.json', coco(items, names, 1, 1, 0))
    for item, name in zip(items, names):
        put(item, folder / 'train_images_640_02' / name)
    return dict(train=items)


@layout
def one_json(folder, items):
    write_json(folder / 'final version 2.json', coco(items, [i.path.name for i in items]))
    for item in items:
        put(item, folder / 'pictures' / item.path.name)
    return dict(train=items)


@layout
def datumaro(folder, items):
    splits = halves(items)
    for word, part in splits.items():
        names = numbered(part)
        write_json(folder / f'annotations/instances_{word}.json', coco(part, names, 1, 1, 1))
        for item, name in zip(part, names):
            put(item, folder / 'images' / word / name)
    return splits


@layout
def coco_annotator(folder, items):
    content = coco(items, [i.path.name for i in items], 1, 1, 1, isbbox=True, color='#00ff00')
    for image in content['images']:
        image.update(path=f'/datasets/shapes/{image["file_name"]}', dataset_id=1, deleted=False)
    write_json(folder / 'shapes-1.json', content)
    for item in items:
        put(item, folder / item.path.name)
    return dict(train=items)


@layout
def labelme2coco(folder, items):
    write_json(folder / 'dataset.json', coco(items, [f'images/{i.path.name}' for i in items], 1, 1))
    for item in items:
        put(item, folder / 'images' / item.path.name)
    return dict(train=items)


def yolo_lines(item, polygons=False):
    for label, box in item.objects:
        if polygons:
            values = [
                v / (item.height if n % 2 else item.width) for n, v in enumerate(outline(box))
            ]
        else:
            x, y, w, h = box
            values = [(x + w / 2) / item.width, (y + h / 2) / item.height]
            values += [w / item.width, h / item.height]
        yield f'{CLASSES.index(label)} {" ".join(f"{v:.10g}" for v in values)}'


def put_yolo(item, image, label, polygons=False):
    put(item, image)
    write_text(label, *yolo_lines(item, polygons))


@layout
def yolo_roboflow(folder, items):
    splits = halves(items)
    for word, part in zip(('train', 'valid'), splits.values()):
        for name, item in zip(numbered(part), part):
            label = folder / word / 'labels' / name.replace('.png', '.txt')
            put_yolo(item, folder / word / 'images' / name, label)
    write_text(
        folder / 'data.yaml',
        'train: ../train/images',
        'val: ../valid/images',
        'test: ../test/images',
        'nc: 3',
        f'names: {CLASSES}',
    )
    return splits


@layout
def yolo_ultralytics(folder, items):
    splits = halves(items)
    for word, part in splits.items():
        for name, item in zip(numbered(part), part):
            label = folder / 'labels' / word / name.replace('.png', '.txt')
            put_yolo(item, folder / 'images' / word / name, label, polygons=True)
    names = [f'  {number}: {name}' for number, name in enumerate(CLASSES)]
    paths = ['path: ../datasets/shapes', 'train: images/train', 'val: images/val', 'test:']
    write_text(folder / 'shapes.yaml', *paths, 'names:', *names)
    return splits


@layout
def yolo_lists(folder, items):
    splits = halves(items)
    for word, part in splits.items():
        names = numbered(part)
        for name, item in zip(names, part):
            name = f'{word}_{name}'
            label = folder / 'labels' / name.replace('.png', '.txt')
            put_yolo(item, folder / 'images' / name, label)
        lines = [f'/content/shapes/images/{word}_{name}' for name in names]
        write_text(folder / f'{word}.txt', *lines)
    write_text(folder / 'data.yml', 'train: train.txt', 'val: val.txt', f'names: {CLASSES}')
    return splits


@layout
def yolo_label_studio(folder, items):
    for name, item in zip(numbered(items), items):
        label = folder / 'labels' / name.replace('.png', '.txt')
        put_yolo(item, folder / 'images' / name, label)
    write_text(folder / 'classes.txt', *CLASSES)
    categories = [dict(id=n, name=name) for n, name in enumerate(CLASSES)]
    write_json(folder / 'notes.json', dict(categories=categories, info=dict(year=2024)))
    return dict(train=items)


@layout
def yolo_cvat(folder, items):
    names = numbered(items)
    for name, item in zip(names, items):
        image = folder / 'obj_train_data' / name
        put_yolo(item, image, image.with_suffix('.txt'))
    write_text(folder / 'obj.names', *CLASSES)
    write_text(
        folder / 'obj.data', 'classes = 3', 'train = data/train.txt', 'names = data/obj.names'
    )
    write_text(folder / 'train.txt', *[f'data/obj_train_data/{name}' for name in names])
    return dict(train=items)


def write_voc(item, path, filename, first=0, database='Unknown', size=True):
    root = ElementTree.Element('annotation')

    def add(parent, tag, text=''):
        child = ElementTree.SubElement(parent, tag)
        child.text = str(text)
        return child

    add(root, 'folder', 'JPEGImages')
    add(root, 'filename', filename)
    add(add(root, 'source'), 'database', database)
    stated = add(root, 'size')
    for tag, value in (('width', item.width), ('height', item.height), ('depth', 3)):
        add(stated, tag, value if size else 0)
    for label, (x, y, w, h) in item.objects:
        entry = add(root, 'object')
        add(entry, 'name', label)
        add(entry, 'difficult', 0)
        box = add(entry, 'bndbox')
        # VOC itself counts pixels from 1 and includes the last.
        for tag, value in (
            ('xmin', x + first),
            ('ymin', y + first),
            ('xmax', x + w),
            ('ymax', y + h),
        ):
            add(box, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path)


@layout
def voc_official(folder, items):
    splits = halves(items)
    for word, part in splits.items():
        stems = [f'2007_{word}_{n:06d}' for n in range(len(part))]
        write_text(folder / 'VOC2007/ImageSets/Main' / f'{word}.txt', *stems)
        write_text(
            folder / 'VOC2007/ImageSets/Main' / f'bar_{word}.txt', *[f'{s}  -1' for s in stems]
        )
        for stem, item in zip(stems, part):
            put(item, folder / 'VOC2007/JPEGImages' / f'{stem}.png')
            path = folder / 'VOC2007/Annotations' / f'{stem}.xml'
            write_voc(item, path, f'{stem}.png', 1, 'The VOC2007 Database')
    return splits


@layout
def voc_roboflow(folder, items):
    splits = halves(items)
    for word, part in zip(('train', 'valid'), splits.values()):
        for name, item in zip(numbered(part), part):
            put(item, folder / word / name)
            write_voc(item, folder / word / name.replace('.png', '.xml'), name)
    return splits


@layout
def labelimg(folder, items):
    for item in items:
        put(item, folder / item.path.name)
        write_voc(item, folder / f'{item.path.stem}.xml', item.path.name, size=False)
    return dict(train=items)


@layout
def voc_label_studio(folder, items):
    for name, item in zip(numbered(items), items):
        put(item, folder / 'images' / name)
        path = folder / 'Annotations' / name.replace('.png', '.xml')
        write_voc(item, path, name.removesuffix('.png'), database='MyDatabase')
    return dict(train=items)


def write_labelme(item, path, image_path):
    shapes = []
    for number, (label, box) in enumerate(item.objects):
        points = [outline(box)[i : i + 2] for i in range(0, 8, 2)]
        kind = ('rectangle', 'polygon')[number % 2]
        if kind == 'rectangle':
            points = [points[2], points[0]]
        shapes.append(dict(label=label, points=points, group_id=None, shape_type=kind, flags={}))
    shapes.append(dict(label='square', points=[[1, 1]], group_id=None, shape_type='point'))
    write_json(
        path,
        dict(
            version='5.4.1',
            flags={},
            shapes=shapes,
            imagePath=image_path,
            imageData=None,
            imageHeight=item.height,
            imageWidth=item.width,
        ),
    )


@layout
def labelme_beside(folder, items):
    for item in items:
        put(item, folder / item.path.name)
        write_labelme(item, folder / f'{item.path.stem}.json', item.path.name)
    return dict(train=items)


@layout
def labelme_apart(folder, items):
    for item in items:
        put(item, folder / 'images' / item.path.name)
        path = folder / 'labels' / f'{item.path.stem}.json'
        write_labelme(item, path, f'..\\images\\{item.path.name}')
    return dict(train=items)
