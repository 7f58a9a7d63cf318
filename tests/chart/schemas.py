"""Kubernetes' own schemas, offline: those that the package kubernetes-validate carries.

The package's function reads a megabyte of definitions for every object; here each version's are read once.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate

Object = dict[str, Any]
_FOLDER = Path(kubernetes_validate.__file__).with_name("kubernetes-json-schema")
# Objects of others' APIs have no schema there.
_FOREIGN = ("monitoring.coreos.com/", "cert-manager.io/")


@cache
def _registry(version: str) -> Any:
    text = (_FOLDER / f"v{version}.0-local-strict" / "_definitions.json").read_text()
    return jsonschema_rs.Registry([("json-schema:///_definitions.json", json.loads(text))])


@cache
def _validator(version: str, kind: str, api: str) -> Any:
    """None: that version has no such kind."""
    group, _, number = api.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}-{number}" if group else f"{kind.lower()}-{number}"
    file = _FOLDER / f"v{version}.0-local-strict" / f"{name}.json"
    if not file.is_file():
        return None
    return jsonschema_rs.validator_for(json.loads(file.read_text()), registry=_registry(version))


def complaints(found: list[Object], version: str) -> list[str]:
    """What the schemas of a Kubernetes ("1.30") refuse, also fields that it does not know."""
    told = []
    for item in found:
        if item["apiVersion"].startswith(_FOREIGN):
            continue
        validator = _validator(version, item["kind"], item["apiVersion"])
        if validator is None:
            told.append(f"{item['kind']}: {version} has no {item['apiVersion']}")
            continue
        for error in validator.iter_errors(item):
            told.append(f"{item['kind']} {item['metadata']['name']}: {error.message} at {list(error.instance_path)}")
    return told
