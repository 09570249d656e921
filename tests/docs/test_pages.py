"""Pages lead to what there is, and say of configs what the index of models says."""

import importlib.util
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from doc_pages import PAGES, ROOT, name

LINK = re.compile(r'\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
FENCE = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
ROW = re.compile(
    r'^\| `(deformable-detr[\w-]+|detr[\w-]+)` \| ([\d.]+) \| ([\d,]+) \|', re.MULTILINE
)


def anchors(path):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = FENCE.sub('', path.read_text())
    slugs = set()
    for heading in HEADING.findall(text):
        plain = re.sub(r'[^\w\s-]', '', heading.lower())
        slugs.add(re.sub(r'[\s]+', '-', plain.strip()))
    return slugs


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading_of_it(path):
    for link in LINK.findall(FENCE.sub('', path.read_text())):
        if '://' in link:
            continue
        file, _, anchor = urllib.parse.unquote(link).partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), f'{link} leads nowhere'
        if anchor and not anchor.startswith('ddetr_plugin.'):
            assert anchor in anchors(target), f'{link}: there is no such heading'


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / 'README.md').read_text()
    assert text.count('\n') <= 150
    missing = [
        path.name
        for path in ROOT.glob('docs/*.md')
        if path.name not in ('index.md', 'parity.md') and f'docs/{path.name}' not in text
    ]
    assert not missing


def test_the_navigation_of_the_site_names_every_page():
    class Loader(yaml.SafeLoader):
        """Of mkdocs.yml, whose tags name Python objects."""

    content = yaml.load((ROOT / 'mkdocs.yml').read_text(), Loader)
    listed = set(re.findall(r'[\w/]+\.md', str(content['nav'])))
    pages = {path.relative_to(ROOT / 'docs').as_posix() for path in ROOT.glob('docs/**/*.md')}
    assert listed == pages | {'repository/CHANGELOG.md'}


@pytest.mark.parametrize('page', ['README.md', 'docs/model_zoo.md'])
def test_tables_of_configs_say_what_the_index_of_models_says(page):
    from ddetr_plugin.apis import list_configs

    known = {record.name: record for record in list_configs()}
    rows = ROW.findall((ROOT / page).read_text())
    assert len(rows) == 5
    for config, published_ap, parameters in rows:
        assert float(published_ap) == known[config].published_ap
        assert int(parameters.replace(',', '')) == known[config].parameters


@pytest.fixture(scope='module')
def drawings():
    spec = importlib.util.spec_from_file_location('drawings', ROOT / 'docs/site/drawings.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_what_their_script_makes(drawings):
    for file, draw in drawings.DRAWINGS.items():
        content = draw()
        ElementTree.fromstring(content)
        assert (ROOT / 'docs' / 'images' / file).read_text() == content


def test_the_shapes_in_the_drawing_are_those_of_the_model(drawings):
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from ddetr_plugin.apis import find_config
    from ddetr_plugin.registry import MODELS

    config = Config.fromfile(find_config('deformable-detr_r50_16xb2-50e_coco'))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(config.model)
        maps = [tuple(m.shape) for m in model.backbone(torch.empty(1, 3, 800, 1333))]
        levels = [tuple(m.shape) for m in model.neck([torch.empty(m) for m in maps])]
    text = drawings.one_image()
    for shape in maps:
        assert f'(B, {", ".join(map(str, shape[1:]))})' in text
    assert levels == [(1, 256, *size) for size in drawings.SIZES]
    assert f'(B, {sum(h * w for h, w in drawings.SIZES)}, 256)' in text
    layers, queries = (
        len(model.decoder.layers),
        model.query_head.num_queries
        if hasattr(model.query_head, 'num_queries')
        else len(model.query_head.query_embedding.weight),
    )
    classes = model.bbox_head.num_classes
    assert f'logits ({layers}, B, {queries}, {classes})' in text
    assert f'{model.bbox_head.max_per_img} best pairs' in text
