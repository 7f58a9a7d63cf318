"""The OpenAPI 3.1 document, made from the table of routes and the structs that they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orion_controller import __version__
from orion_controller.api import auth, models
from orion_controller.api.routes import Name, Route, phrase

_REF = "#/components/schemas/{name}"
_DESCRIPTION = (
    "The pool of GPUs: what there is, who has it, and how to change it. Sizes are MiB, times Unix seconds, shares "
    "percent of one GPU. Every refusal is an ApiError. A replica that does not lead answers changes with 307 to the "
    "one that does."
)
_TAGS = {
    "log-in": "Tokens. A viewer may read, an operator may change.",
    "pool": "What there is. Lists come in pages.",
    "changes": "For operators; each leaves a line in the audit trail.",
    "controller": "Health, metrics, this document.",
    "product": "The small API of the original product, where its meaning is known.",
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document. Deterministic: it is also what docs/api.md is made of."""
    table = list(routes)
    wanted: list[Any] = [models.ApiError]
    for route in table:
        wanted += [kind for kind in (route.body, route.answer) if kind is not None]
    references, components = msgspec.json.schema_components(wanted, ref_template=_REF)
    schemas = dict(zip(map(repr, wanted), references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    used = {route.tag for route in table}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Orion controller", "version": __version__, "description": _DESCRIPTION,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if name in used],
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The token of a log-in or of a program."},
                "cookie": {"type": "apiKey", "in": "cookie", "name": auth.COOKIE, "description":
                           "Set by a log-in. Changes with it must come from the controller's own pages."},
            },
        },
    }  # fmt: skip


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": _operation_id(route), "summary": route.summary, "tags": [route.tag]}
    role = f"Role: {route.role}." if route.role else "For everybody."
    made["description"] = f"{route.description} {role}".strip()
    if route.role is None:
        made["security"] = []
    elif route.bearer_only:
        made["security"] = [{"bearer": []}]
    parameters = _path_parameters(route) + _query_parameters(route)
    if parameters:
        made["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": schemas[repr(route.body)]}}
        made["requestBody"] = {"required": True, "content": content}
    success: dict[str, Any] = {"description": phrase(route.success)}
    if route.answer is not None:
        success["content"] = {route.media: {"schema": schemas[repr(route.answer)]}}
    made["responses"] = {str(route.success): success}
    refusal = {"application/json": {"schema": schemas[repr(models.ApiError)]}}
    if route.leader:
        made["responses"]["307"] = {"description": "Another replica leads: Location says where", "content": refusal}
    for status in route.statuses:
        made["responses"][str(status)] = {"description": phrase(status), "content": refusal}
    return made


def _operation_id(route: Route) -> str:
    words = route.path.removeprefix("/api/v1").replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([route.method.lower(), *(word for word in words if word)])


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(Name)
    return [
        {"name": name, "in": "path", "required": True, "schema": schema,
         **({"description": route.names[name]} if name in route.names else {})}
        for name in route.parts
    ]  # fmt: skip


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    (reference,), components = msgspec.json.schema_components([route.query])
    model = components[reference["$ref"].rpartition("/")[2]]
    found = []
    for name, schema in model["properties"].items():
        plain = dict(schema)
        description = plain.pop("description", "")
        found.append({"name": name, "in": "query", "required": name in model.get("required", ()),
                      "description": description, "schema": plain})  # fmt: skip
    return found
