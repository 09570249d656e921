"""What does not fit in a data set: where it is, and what to do about it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ['SHOWN', 'DataError', 'Finding', 'describe_findings', 'has_errors', 'write_report']

SHOWN = 5  # findings of a kind that are described
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


class DataError(ValueError):
    """Data on which a training would fail or go wrong.

    Attributes:
        findings: all that were found, warnings and notes, too.
    """

    def __init__(self, findings: Sequence[Finding], remedy: str):
        """`remedy` says what to do, in a sentence without its full stop."""
        errors = [finding for finding in findings if finding.level == 'error']
        more = f', and {len(errors) - 1} more errors' if len(errors) > 1 else ''
        super().__init__(
            'training on this data would fail or go wrong: '
            f'{errors[0].kind}, {errors[0].where}{more}. {remedy}'
        )
        self.findings = findings


def describe_findings(findings: Sequence[Finding]) -> list[str]:
    """Lines on findings by kind, the worst first, a few of each."""
    kinds: dict[tuple, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((LEVELS.index(finding.level), finding.kind), []).append(finding)
    lines = []
    for (level, kind), group in sorted(kinds.items()):
        lines.append(f'{LEVELS[level]}: {kind} ({len(group)})')
        lines += [f'    {finding.where}' for finding in group[:SHOWN]]
        if len(group) > SHOWN:
            lines.append(f'    ... and {len(group) - SHOWN} more')
        lines.append(f'    what to do: {group[0].remedy}')
    return lines


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
