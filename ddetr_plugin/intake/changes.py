"""What was changed while data was read: everything for a file, a few words for the reader."""

import json
import os
from pathlib import Path

__all__ = ['Changes', 'write_json']

SHOWN = 3  # examples of a kind that are printed
LONGEST = 60  # characters of a value that are printed


class Changes:
    """A list of changes, by annotation file and kind.

    The original files are never touched: a change is a difference between them and what was made of
    them.
    """

    def __init__(self):
        self._kinds: dict[tuple[str, str], list[tuple]] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, file: Path, kind: str, where, before, after) -> None:
        """Notes one change.

        Args:
            file: where the entry stands, or the folder of several files.
            kind: the same words for all changes of a kind.
            where: of which entry, such as 'annotation 7'.
            before, after: values; None where there was or is none.
        """
        self._kinds.setdefault((str(file), kind), []).append((where, before, after))

    def of(self, file: Path) -> list[str]:
        """The kinds of changes of a file."""
        return [kind for name, kind in self._kinds if name == str(file)]

    def lines(self) -> list[str]:
        """A line for every kind, with the first examples."""
        lines = []
        for (file, kind), entries in self._kinds.items():
            shown = ', '.join(
                f'{where}: {_short(before)} -> {_short(after)}'
                for where, before, after in entries[:SHOWN]
            )
            more = ', ...' if len(entries) > SHOWN else ''
            lines.append(f'{Path(file).name}: {kind} ({len(entries)}): {shown}{more}')
        return lines

    def entries(self) -> list[dict]:
        """All of them, for JSON: file, kind and changes as [where, before, after]."""
        return [
            dict(file=file, kind=kind, changes=changes)
            for (file, kind), changes in self._kinds.items()
        ]


def write_json(path: Path, content) -> None:
    """Writes a file that is whole or not there, also where several processes write the same."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(json.dumps(content, default=str) + '\n')
    os.replace(part, path)


def _short(value) -> str:
    if value is None:
        return 'none'
    text = str(value)
    return text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
