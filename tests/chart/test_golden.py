"""What the chart installs, against files that a reviewer reads.

`python -m tests.chart.test_golden --update` writes them again. What is random in each rendering (keys, certificates)
and what follows from it (checksums) stands there as such.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

import pytest

from tests.chart.helm import CLUSTER, NEWEST, VALUES, template

GOLDEN = Path(__file__).with_name("golden")
# Name: the Kubernetes version, and helm's arguments.
CASES: dict[str, tuple[str, list[str]]] = {
    "default": (NEWEST, []),
    "product": ("1.29.3", ["-f", str(VALUES / "product.yaml")]),
    "production": ("1.36.0", ["-f", str(VALUES / "production.yaml")]),
    "laptop-1.20": (CLUSTER, ["-f", str(VALUES / "laptop.yaml")]),
}
_RANDOM = re.compile(r"^(\s*(?:tls\.crt|tls\.key|ca\.crt|caBundle|key|token|password)): [A-Za-z0-9+/=]{16,}$", re.M)
_CHECKSUM = re.compile(r"^(\s*checksum/[a-z]+): [0-9a-f]{64}$", re.M)
# Read once in the first object, these are noise in the others.
_NOISE = re.compile(
    r"^\s*(?:app\.kubernetes\.io/(?:version|part-of|managed-by)|helm\.sh/chart): .*\n|^# Source: .*\n", re.M
)
_DASHBOARD = re.compile(r'^(  orion\.json: )".*"$', re.M)


def rendering(case: str) -> str:
    """The objects, without what is random or said in each of them."""
    version, arguments = CASES[case]
    text = template(*arguments, kube_version=version)
    for pattern, replacement in ((_RANDOM, r"\1: RANDOM"), (_CHECKSUM, r"\1: CHECKSUM"), (_DASHBOARD, r"\1DASHBOARD"),
                                 (_NOISE, "")):  # fmt: skip
        text = pattern.sub(replacement, text)
    return text


@pytest.mark.parametrize("case", CASES)
def test_the_chart_renders_as_reviewed(case: str) -> None:
    wanted = (GOLDEN / f"{case}.yaml").read_text()
    found = rendering(case)
    difference = "".join(difflib.unified_diff(wanted.splitlines(True), found.splitlines(True), "reviewed", "now", n=2))
    assert not difference, f"{difference}\nif this is meant: python -m tests.chart.test_golden --update"


def test_secrets_are_new_in_each_rendering_and_certificates_belong_together() -> None:
    first, second = template(), template()
    keys = [re.findall(r"^  key: ([A-Za-z0-9+/=]{16,})$", text, re.M) for text in (first, second)]
    assert len(keys[0]) == 2 and not set(keys[0]) & set(keys[1])
    bundle = re.search(r"caBundle: (\S+)", first)
    assert bundle is not None
    assert f"ca.crt: {bundle[1]}" in first


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.chart.test_golden --update")
    for name in CASES:
        (GOLDEN / f"{name}.yaml").write_text(rendering(name))
        print(GOLDEN / f"{name}.yaml")
