"""The classes of a data set: without what only groups others, and the same in every split."""

from ddetr_plugin.data_checks import Split
from ddetr_plugin.intake.changes import Changes

__all__ = ['align_classes', 'drop_super_classes']

# Names that LabelMe's converter writes for what is no object.
NO_OBJECTS = ('__ignore__', '_background_')


def drop_super_classes(splits: list[Split], changes: Changes) -> list[Split]:
    """Without categories that no box of any split uses and that only group or pad the others.

    Those are a category that others name as their `supercategory` (Roboflow's row 0), and LabelMe's
    background.
    """
    used = {
        (a['category_id'], names[a['category_id']])
        for s in splits
        for names in [_names(s)]
        for a in _known(s)
    }
    used_names = {name for _, name in used}
    # A list, as some write what cannot be in a set.
    groups = [
        c.get('supercategory')
        for s in splits
        for c in s.content['categories']
        if c.get('supercategory') != c['name']
    ]
    result = []
    for split in splits:
        categories = split.content['categories']
        kept = []
        for category in categories:
            name = category['name']
            twins = [c for c in categories if c['name'] == name and c is not category]
            # Roboflow calls the group of a single class as the class itself.
            grouped = name in groups or any(c.get('supercategory') == name for c in twins)
            in_use = (category['id'], name) in used if twins else name in used_names
            if in_use or not (grouped or name in NO_OBJECTS):
                kept.append(category)
        for category in categories:
            if category not in kept and kept:
                changes.add(
                    split.ann_file,
                    'classes dropped that no box uses and that only group others',
                    f'category {category["id"]!r}',
                    category['name'],
                    None,
                )
        if kept and len(kept) < len(categories):
            split = split._replace(content=dict(split.content, categories=kept))
        result.append(split)
    return result


def align_classes(train: Split, val: Split, changes: Changes) -> Split:
    """The validation split with the categories of the training, where it names fewer or reorders.

    Classes are the same if their names are. Where it has one that the training lacks, it is left as
    it is, for the checks to find.
    """
    wanted, found = train.classes, val.classes
    if wanted == found or not set(found) <= set(wanted) or len(set(wanted)) < len(wanted):
        return val
    ids = {c['name']: c['id'] for c in train.content['categories']}
    names = _names(val)
    annotations = [
        dict(a, category_id=ids[names[a['category_id']]]) if a['category_id'] in names else a
        for a in val.content['annotations']
    ]
    changes.add(
        val.ann_file, 'categories', 'made those of the training, by their names', found, wanted
    )
    categories = train.content['categories']
    return val._replace(content=dict(val.content, categories=categories, annotations=annotations))


def _names(split: Split) -> dict:
    return {c['id']: c['name'] for c in split.content['categories']}


def _known(split: Split):
    names = _names(split)
    return (a for a in split.content['annotations'] if a['category_id'] in names)
