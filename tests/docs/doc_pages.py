"""The pages of the documentation, and what is in them."""

from pathlib import Path

from sybil import Document
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob('*.md'),
        *ROOT.glob('docs/**/*.md'),
        *ROOT.glob('configs/**/*.md'),
        *ROOT.glob('examples/*.md'),
        ROOT / 'ops' / 'README.md',
    )
)


def name(path):
    """What a page is called in the names of tests."""
    return path.relative_to(ROOT).as_posix()


def parse(path, evaluators):
    """A page as a Document whose examples are its code blocks in the languages of `evaluators`.

    A comment `<!-- skip: next "reason" -->` before a block leaves it out.
    """
    parsers = [CodeBlockParser(language, run) for language, run in evaluators.items()]
    return Document.parse(str(path), *parsers, SkipParser())
