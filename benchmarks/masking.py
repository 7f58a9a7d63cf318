"""Makes two outputs of one program comparable: numbers that no two runs share (times, rates, addresses, process
numbers) become `#`, everything else stays."""

from __future__ import annotations

import hashlib
import re

NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
UNIT = (
    r"(?:[nuµm]?s(?:ecs?)?|(?:nano|micro|milli)?seconds?|minutes?|cycles|clocks?|ticks?|fps|[kMGT]?Hz"
    r"|(?:[kKMGTP]i?)?(?:bytes|[bB]|FLOPS?|flops?|[oO]ps|elements|options|keys|samples|pixels)(?:/s(?:ec(?:ond)?)?)"
    r"|[KMGTP]i?(?:FLOPS?|flops?))"
)
# In a line about one of these any number may be another one the next time.
VOLATILE_WORDS = re.compile(
    r"time|timing|elapsed|\btook\b|duration|bandwidth|throughput|performance|\bperf\b|speed|flop|\bfps\b|latency|clock"
    r"|cycles|\bpids?\b|process id|\bfree\b|per second|/s\b|/sec|overhead|seed",
    re.IGNORECASE,
)
RULES = [
    (re.compile(r"0x[0-9a-fA-F]{5,}"), "0x#"),
    (re.compile(r"\b\d{1,2}:\d\d:\d\d(?:\.\d+)?\b"), "#"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "#"),
    (re.compile(rf"(?<![\w.]){NUMBER}(?=\s*[\[(]?{UNIT}\b)"), "#"),
]
ANY_NUMBER = re.compile(rf"(?<![A-Za-z_\d.]){NUMBER}")


def masked(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        for pattern, instead in RULES:
            line = pattern.sub(instead, line)
        if VOLATILE_WORDS.search(line):
            line = ANY_NUMBER.sub("#", line)
        # Columns are padded to the width of the number.
        lines.append(" ".join(line.split()))
    return lines


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
