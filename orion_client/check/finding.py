"""One thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orion_client.check.catalogue import TROUBLES
from orion_client.text import printable


@dataclass(frozen=True)
class Finding:
    """`id`: of the catalogue where something is wrong, else empty. `check`: what was looked at."""

    id: str
    check: str
    status: Literal["ok", "warn", "fail"]
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    """Nothing to mend."""
    return Finding("", check, "ok", printable(message))


def wrong(id: str, check: str, message: str) -> Finding:
    """A trouble of the catalogue; `message` has the particulars."""
    trouble = TROUBLES[id]
    return Finding(id, check, trouble.status, printable(message), trouble.remedy)
