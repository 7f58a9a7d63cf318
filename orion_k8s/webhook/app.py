"""The webhook's HTTP side: AdmissionReview v1 at /mutate and /validate."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from orion_k8s.scheduler.controller_client import ControllerClient, ControllerError
from orion_k8s.scheduler.extender import Counts, wish_of
from orion_k8s.webhook import admission
from orion_k8s.webhook.admission import Options, Verdict

log = logging.getLogger("orion.webhook")

BODY_MAX_BYTES = 8 << 20  # an AdmissionReview has the object twice, of 3 MiB at most
Object = dict[str, Any]


class Webhook:
    """`controller` says what could never fit; while it is away pods are let in, and wait in the scheduler."""

    def __init__(self, controller: ControllerClient | None, options: Options | None = None,
                 counts: Counts | None = None) -> None:  # fmt: skip
        self._controller = controller
        self.options = options or Options()
        self.counts = counts or Counts()

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/mutate", self._mutate), web.post("/validate", self._validate)]

    async def _mutate(self, request: web.Request) -> web.Response:
        return await self._review(request, admission.mutate)

    async def _validate(self, request: web.Request) -> web.Response:
        return await self._review(request, admission.validate)

    async def _review(self, request: web.Request, judge: Callable[[Object, Options], Verdict]) -> web.Response:
        try:
            review = await _body(request)
            asked = review["request"]
            uid, kind, operation = asked["uid"], asked.get("kind") or {}, asked.get("operation")
            pod = asked.get("object")
            if not isinstance(uid, str):
                raise ValueError("request.uid is no text")
        except (ValueError, KeyError, TypeError, AttributeError, msgspec.DecodeError, RecursionError) as error:
            self.counts.add("admission", "bad_request")
            return web.Response(status=400, text=f"this is no AdmissionReview: {error}\n")
        verdict = Verdict()
        if kind.get("kind") == "Pod" and isinstance(pod, dict) and not asked.get("subResource"):
            # The name and the namespace may be missing in the object while it is being made.
            told = pod.setdefault("metadata", {})
            told.setdefault("namespace", asked.get("namespace") or "default")
            told.setdefault("name", asked.get("name") or told.get("generateName") or "")
            if operation == "CREATE":
                verdict = judge(pod, self.options)
                await self._check(verdict)
            elif operation == "UPDATE":
                verdict = admission.validate_update(pod, self.options)
        self.counts.add("admission", "refused" if verdict.refusal else "patched" if verdict.patch else "allowed")
        return web.Response(body=msgspec.json.encode(_answer(uid, verdict)), content_type="application/json")

    async def _check(self, verdict: Verdict) -> None:
        """Refuses what no GPU of the pool could ever hold."""
        if verdict.ask is None or verdict.refusal or self._controller is None:
            return
        wish = wish_of(verdict.ask, 1.0, "", check=True)
        wish.uid = wish.uid or "admission"
        try:
            outcome = await self._controller.reserve(wish)
        except ControllerError as error:
            log.warning("whether a pod could ever fit is not known: %s", error)
            verdict.warnings.append("the Orion controller does not answer now: the pod waits until it does")
            return
        if outcome.refusal in ("never", "refused"):
            verdict.refusal, verdict.patch = f"orion: {outcome.message}", []


def _answer(uid: str, verdict: Verdict) -> Object:
    response: Object = {"uid": uid, "allowed": not verdict.refusal}
    if verdict.refusal:
        response["status"] = {"code": 422, "reason": "Invalid", "message": verdict.refusal}
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(verdict.patch)).decode()
    if verdict.warnings:
        response["warnings"] = [warning[:250] for warning in verdict.warnings]
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


async def _body(request: web.Request) -> Any:
    parts, size = [], 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_MAX_BYTES:
            raise ValueError(f"more than {BODY_MAX_BYTES} bytes")
        parts.append(chunk)
    return msgspec.json.decode(b"".join(parts))
