"""The images' recipes: linted, and in step with what they copy and with the chart. They are not built here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.chart.helm import CHART, ROOT

FOLDER = ROOT / "packaging" / "docker"
RECIPES = [FOLDER / "Dockerfile", FOLDER / "Dockerfile.pytorch"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_lint(recipe: Path) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None, "hadolint is missing: make setup"
    done = subprocess.run([program, "--no-color", str(recipe)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _stages() -> dict[str, str]:
    """Text of each stage of the Dockerfile."""
    parts = re.split(r"^FROM \S+ AS (\S+)\n", RECIPES[0].read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_is_an_image_for_each_that_the_chart_names() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = {values[part]["image"]["repository"] for part in ("controller", "server", "plugin", "scheduler", "dra")}
    assert {name.removeprefix("orion-") for name in named} <= set(_stages())


def test_only_the_server_is_root_and_no_image_has_a_compiler() -> None:
    stages = _stages()
    assert "USER 10001:10001" in stages["controller"] and "USER 10001:10001" in stages["client"]
    assert "USER" not in stages["server"]
    for name in ("controller", "server", "client"):
        assert "apt-get" not in stages[name] and "COPY . " not in stages[name]


def test_bases_are_pinned_and_can_be_named_by_digest() -> None:
    for recipe in RECIPES:
        text = recipe.read_text()
        bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.M))
        for used in re.findall(r"^FROM (\S+)", text, re.M):
            name = used.strip("${}")
            assert name in bases or name == "build", f"{recipe.name}: FROM {used} is no argument"
        for image in bases.values():
            assert re.fullmatch(r".+:[0-9a-z.-]*[0-9]+[0-9a-z.-]*", image) and not image.endswith(":latest"), image
    assert "ARG SOURCE_DATE_EPOCH" in RECIPES[0].read_text()


def test_everything_that_the_wheel_is_built_from_reaches_the_build() -> None:
    sent = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for name in sent:
        assert (ROOT / name).exists(), f"{name} is not there any more"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        "setup.py",
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        "shim",
        "softgpu",
        "cmake",
        "tools",
    }
    needed |= {
        path.parent.name for path in ROOT.glob("*/__init__.py") if re.match("orion_|wire|benchmarks", path.parent.name)
    }
    assert needed <= sent, f"Dockerfile.dockerignore keeps out {sorted(needed - sent)}"


def test_the_packages_of_the_images_are_complete_and_within_the_projects_bounds() -> None:
    pins = dict(line.split("==") for line in (FOLDER / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["kubernetes"] + extras["postgres"] + extras["gpu"]
    todo, seen = [Requirement(text) for text in wanted], set()
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not {requirement}"
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        for text in importlib.metadata.requires(name) or []:
            further = Requirement(text)
            chosen = requirement.extras | {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in chosen):
                todo.append(further)
    assert {name for name, _ in seen} == set(pins)
