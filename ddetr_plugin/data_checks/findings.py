"""What does not fit in a data set: where it is, and what to do about it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ['SHOWN', 'Finding', 'has_errors', 'print_findings', 'write_report']

SHOWN = 5  # findings of a kind that are printed
LEVELS = ('error', 'warning', 'note')


class Finding(NamedTuple):
    """Something that does not fit, or that is worth knowing.

    Attributes:
        level: 'error': a training would break or learn something wrong; 'warning': it loses data,
            or something looks wrong; 'note': it is as it may be.
        kind: the same words for all findings of a kind.
        file: the annotation file or the picture.
        part: 'image', 'annotation', 'segment' or 'category'; None if the finding is about the
            whole file.
        id: of that part, of a panoptic annotation its image's; None if the finding is about the
            whole file.
        detail: what was found.
        remedy: what to do.
    """

    level: str
    kind: str
    file: str
    part: str | None
    id: int | str | None
    detail: str
    remedy: str

    @property
    def where(self) -> str:
        """File, detail and id, on one line."""
        return f'{self.file}: {self.detail}' + (f' ({self.part} {self.id})' if self.part else '')


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is an error."""
    return any(finding.level == 'error' for finding in findings)


def print_findings(findings: Sequence[Finding]) -> bool:
    """Prints findings by kind, the worst first, and returns whether one of them is an error."""
    kinds: dict[tuple, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((LEVELS.index(finding.level), finding.kind), []).append(finding)
    for (level, kind), group in sorted(kinds.items()):
        print(f'{LEVELS[level]}: {kind} ({len(group)})')
        for finding in group[:SHOWN]:
            print(f'    {finding.where}')
        if len(group) > SHOWN:
            print(f'    ... and {len(group) - SHOWN} more')
        print(f'    what to do: {group[0].remedy}')
    return has_errors(findings)


def write_report(path: str | Path, findings: Sequence[Finding], about: dict) -> None:
    """Writes all findings as JSON.

    Args:
        path: file; its folder is made.
        findings: go under `findings`, a list of dicts with the fields of `Finding`; their numbers
            by level under `counts`.
        about: goes into the file as it is.
    """
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    content = dict(about, counts=counts, findings=[f._asdict() for f in findings])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + '\n')
