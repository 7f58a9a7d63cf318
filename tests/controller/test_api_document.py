"""The OpenAPI document and the page that is made of it."""

from __future__ import annotations

import msgspec
import pytest

from orion_controller.api import docs, openapi
from orion_controller.api.app import all_routes
from tests.controller.http_world import World, go


def operations() -> list[tuple[str, str, dict]]:
    document = openapi.document(all_routes())
    return [(m, path, o) for path, found in document["paths"].items() for m, o in found.items()]


def test_the_page_is_up_to_date():
    assert docs.PATH.read_text(encoding="utf-8") == docs.text(), "run `python -m orion_controller.api.docs`"


def test_the_document_is_served_to_everybody_and_complete(tmp_path):
    async def body(w: World) -> None:
        answer = await w.get("/openapi.json", token="")
        assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
        assert answer.json == msgspec.json.decode(msgspec.json.encode(openapi.document(all_routes())))

    go(tmp_path, body)
    found = operations()
    assert len(found) == len(all_routes())
    assert len({o["operationId"] for _, _, o in found}) == len(found)


def test_every_reference_leads_somewhere():
    document = openapi.document(all_routes())
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    seen = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                seen.add(value["$ref"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert seen == known


@pytest.mark.parametrize("kind", ["integer", "number", "string"])
def test_every_parameter_is_bounded(kind):
    checked = 0
    for _, path, operation in operations():
        for parameter in operation.get("parameters", ()):
            schema = parameter["schema"]
            if schema.get("type") != kind:
                continue
            checked += 1
            bounds = ("maxLength",) if kind == "string" else ("minimum", "maximum")
            assert all(bound in schema for bound in bounds), (path, parameter)
            assert parameter["description"], (path, parameter)
    assert checked or kind == "number"


def test_every_body_is_bounded_and_takes_nothing_unknown():
    document = openapi.document(all_routes())
    for _, path, operation in operations():
        if "requestBody" not in operation:
            continue
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        for field, declared in schema["properties"].items():
            for one in declared.get("anyOf", [declared]):
                wanted = {"integer": ("minimum", "maximum"), "string": ("maxLength",)}.get(one.get("type"), ())
                assert all(bound in one for bound in wanted), (path, field)


def test_only_public_routes_are_without_security():
    public = {path for _, path, operation in operations() if operation.get("security") == []}
    assert public == {"/healthz", "/readyz", "/openapi.json", "/api/v1/login"}
    for _, path, operation in operations():
        if path.startswith("/service"):
            assert operation["security"] == [{"bearer": []}]
        if path not in public:
            assert "401" in operation["responses"]
