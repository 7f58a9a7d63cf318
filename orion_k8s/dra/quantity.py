"""Kubernetes quantities ("4Gi", "100", "1500m") as exact numbers, and MiB as quantities."""

from __future__ import annotations

import re
from decimal import ROUND_FLOOR, Decimal

MIB = 1 << 20
_FORM = re.compile(
    r"([+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20}))(?:([eE][+-]?\d{1,2})|([KMGTPE]i|[numkMGTPE]))?", re.ASCII
)
_FACTORS = {
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{letter: Decimal(1000) ** -power for power, letter in enumerate("mun", 1)},
}


def parse(text: object) -> Decimal:
    """The number. ValueError: it is no quantity."""
    match = _FORM.fullmatch(str(text)) if isinstance(text, str | int | float) else None
    if match is None:
        raise ValueError(f"{text!r:.80} is no quantity: it is a number with a suffix, like 4Gi or 50")
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * (_FACTORS[suffix] if suffix else 1)


def floor(number: Decimal) -> int:
    return int(number.to_integral_value(ROUND_FLOOR))


def mib(text: object) -> int:
    """Whole MiB in a quantity of bytes. ValueError."""
    return floor(parse(text) / MIB)


def of_mib(value: int) -> str:
    """In the form in which the API server keeps it, so that what was written and what is read are the same text."""
    if value and value % 1024 == 0:
        return f"{value // 1024}Gi" if (value // 1024) % 1024 else _larger(value // 1024)
    return f"{value}Mi" if value else "0"


def _larger(gib: int) -> str:
    for suffix in ("Ti", "Pi", "Ei"):
        gib //= 1024
        if gib % 1024:
            return f"{gib}{suffix}"
    raise ValueError("more than an exbibyte")
