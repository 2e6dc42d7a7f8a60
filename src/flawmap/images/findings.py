"""What an audit finds, and how it is told: shared by the audit of pictures and that of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]  # an error would spoil a result
SHOWN = 3  # names in a person's table


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    code: str
    message: str
    names: tuple[str, ...] = ()


def gathered(troubles: Mapping[str, Sequence[str]], table: Mapping[str, tuple[Severity, str]]) -> list[Finding]:
    """A finding a code, in the order of the table: code -> severity and what follows "3 pictures"."""
    return [
        Finding(severity, code, f"{many(len(names), 'picture')} {what}", tuple(names))
        for code, (severity, what) in table.items()
        if (names := troubles.get(code))
    ]


def told(findings: Sequence[Finding]) -> list[str]:
    """Lines for a person."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<8} {finding.code}: {finding.message}")
        lines += [f"         {name}" for name in finding.names[:SHOWN]]
        lines += [f"         and {len(finding.names) - SHOWN} more"] if len(finding.names) > SHOWN else []
    return lines


def many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
