"""Which files of a folder hold annotations in COCO's format, by content, and of which split."""

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ddetr_plugin.intake.tree import SPLIT_WORDS, Tree, split_of

__all__ = ['choose_splits', 'find_coco', 'is_labelme']

# Where annotation files usually are, the best place first.
PLACES = (
    'annotations/instances_{}.json',
    'annotations/instances_{}[0-9]*.json',
    'annotations/{}.json',
    '{}/_annotations.coco.json',
    'instances_{}.json',
    '{}.json',
)
# Words in the names of files that COCO has besides boxes.
OTHER_TASKS = ('captions', 'info', 'keypoints', 'panoptic', 'stuff')
PARTS = (b'"images"', b'"annotations"', b'"categories"')
HEAD = 1 << 16  # bytes
LABELME = re.compile(rb'"(shapes|imagePath)"\s*:')


def find_coco(tree: Tree) -> list[str]:
    """The JSON files that have images, annotations and categories, relative to the tree.

    Where a split has none, also what is at a usual place for it: that something is wrong with it is
    worth knowing.
    """
    names = tree.with_suffix('.json')
    found = [name for name in names if _looks_like_coco(tree.root / name)]
    splits = {(split_of(name) or (None,))[0] for name in found}
    for split in SPLIT_WORDS.keys() - splits:
        usual = [n for n in names if _rank(n, split)[2] < len(PLACES) and n not in found]
        found += [name for name in usual if not is_labelme(tree.root / name)]
    return sorted(found)


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is one of LabelMe's, of one image."""
    with path.open('rb') as file:
        head = file.read(HEAD).replace(b'\0', b'')
    return LABELME.search(head) is not None and PARTS[1] not in head


def choose_splits(names: list[str], tree: Tree) -> dict[str, str]:
    """The annotation files of the training and the validation: 'train', and 'val' if there is one.

    The split is what the name of the file or of a folder says; a file that says nothing, or the
    only one, is the training's. Without validation files those called test are taken.

    Args:
        names: relative to the tree.
        tree: of the data set.

    Raises:
        ValueError: several files fit, or none is of the training; the message lists them.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault((split_of(name) or (None,))[0], []).append(name)
    chosen = {}
    train = groups.get('train') or groups.get(None) or (names if len(names) == 1 else [])
    if not train:
        raise ValueError(
            f'{tree.root} has no training annotations, only {", ".join(sorted(names))}. Put train '
            'into the name of the file to be trained on, or give its path instead of the folder'
        )
    chosen['train'] = _best(train, 'train', tree)
    held_out = groups.get('val') or groups.get('test')
    if held_out and held_out != train:
        chosen['val'] = _best(held_out, 'val' if groups.get('val') else 'test', tree)
    return chosen


def _best(names: list[str], split: str, tree: Tree) -> str:
    ranks = {name: _rank(name, split) for name in names}
    best = [name for name in names if ranks[name] == min(ranks.values())]
    first = (tree.root / best[0]).read_bytes() if len(best) > 1 else b''
    if any((tree.root / other).read_bytes() != first for other in best[1:]):
        raise ValueError(
            f'{tree.root} has several files of {split} annotations: {", ".join(sorted(best))}. '
            'Leave one of them there, or give the path of one instead of the folder; what belongs '
            'to other splits should have train or val in its name or in that of its folder'
        )
    return best[0]


def _rank(name: str, split: str) -> tuple:
    """Smaller for likelier files: for boxes, at a usual place."""
    words = re.split('[^a-z]+', PurePosixPath(name).stem.lower())
    place = next(
        (
            (number, place)
            for number, alias in enumerate(SPLIT_WORDS[split])
            for place, pattern in enumerate(PLACES)
            if fnmatchcase(name.lower(), pattern.format(alias))
        ),
        (len(SPLIT_WORDS[split]), len(PLACES)),
    )
    return (any(task in words for task in OTHER_TASKS), *place)


def _looks_like_coco(path: Path) -> bool:
    with path.open('rb') as file:
        head = file.read(HEAD)
        # As LabelMe's files hold images, there may be gigabytes of them.
        if LABELME.search(head.replace(b'\0', b'')) and PARTS[1] not in head.replace(b'\0', b''):
            return False
        # UTF-16 has a zero byte in every letter.
        data = (head + file.read()).replace(b'\0', b'')
    return all(part in data for part in PARTS)
