"""A hook of mkdocs: pages may link to files of the repository outside of docs/.

Such a link is written as it works in a checkout, `[text](../ops/README.md)`. Here the file gets a
place in the site, `repository/ops/README.md`, together with the files that it links to itself.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PLACE = 'repository'
# Of the navigation, which is written in mkdocs.yml.
ALWAYS = ('CHANGELOG.md',)
LINK = re.compile(r'(\]\()([^)\s#]+)((?:#[^)\s]*)?\))')


def outside_links(text, folder):
    """The files of the repository, outside of docs/, that a text in `folder` links to."""
    for link in LINK.finditer(text):
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if not path.startswith(('..', 'docs/')) and (ROOT / path).is_file():
            yield path


def on_files(files, config):
    """Adds the files that pages link to, and those that these link to."""
    wanted = list(ALWAYS)
    for file in files.documentation_pages():
        wanted += outside_links(file.content_string, posixpath.dirname(f'docs/{file.src_uri}'))
    known = set()
    while wanted:
        path = wanted.pop()
        if path in known:
            continue
        known.add(path)
        uri = f'{PLACE}/{path}'
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        if path.endswith('.md'):
            text = (ROOT / path).read_text(encoding='utf-8')
            wanted += outside_links(text, posixpath.dirname(path))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to files outside of docs/ into links to their places, and back."""
    uri = page.file.src_uri
    inside = not uri.startswith(f'{PLACE}/')
    # Where the text lies in the repository, and where its page lies in the site.
    folder = posixpath.dirname(f'docs/{uri}' if inside else uri.removeprefix(f'{PLACE}/'))

    def place(link):
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if '://' in link[2] or path.startswith('..') or not (ROOT / path).is_file():
            return link[0]
        target = path.removeprefix('docs/') if path.startswith('docs/') else f'{PLACE}/{path}'
        relative = posixpath.relpath(target, posixpath.dirname(uri) or '.')
        return f'{link[1]}{relative}{link[3]}'

    return LINK.sub(place, markdown)
