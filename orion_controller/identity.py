"""Which pod a client is in: TokenReview of bound service-account tokens, remembered by token and uid.

A pod names its group, which is its uid, and shows a token that the kubelet has made for it and that the API server
knows it by. What is remembered is never the token alone: the same token with another uid is another question. Belongs
to one event loop, which never waits here for longer than a request's own task.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from orion_controller.kube_api import KubeError, Reviewed
from orion_controller.pool import CUDA_ERROR_DEVICE_UNAVAILABLE, Refused

log = logging.getLogger("orion.identity")

CUDA_ERROR_NOT_PERMITTED = 800
AUDIENCE = "orion"
FRESH_S = 60.0  # an answer of the API server is taken for so long without asking again
STALE_S = 3600.0  # and while it is away for so long, but never beyond the token's end
REFUSED_S = 5.0  # a refusal is repeated for so long: who is refused tries again
AWAY_S = 5.0  # after a question without an answer, pods that are known are not asked about for so long
REVIEW_TIMEOUT_S = 2.5  # of a question: less than clients wait for the controller
ENTRIES_MOST = 16384
REVIEWS_AT_ONCE = 64
WAITING_MOST = 1024
_UID_CHARACTERS_MOST = 63
Review = Callable[[str, list[str]], Awaitable[Reviewed]]
_Key = tuple[bytes, str]  # SHA-256 of the token, uid
Value = TypeVar("Value")


class NotProven(Refused):
    """The client is not the pod that it says it is, or nobody can say at present: a sentence, and what to do."""


class _Claims(msgspec.Struct):
    exp: float | None = None


_claims = msgspec.json.Decoder(_Claims)


def expiry_of(token: str) -> float | None:
    """Unix time at which a JWT says that it ends; None: it does not say. Proves nothing: the API server has checked
    it."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return _claims.decode(body).exp
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None


class Identities:
    """Answers `check` from what is remembered, else from the API server."""

    def __init__(
        self, review: Review, audience: str = AUDIENCE, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """`review`: KubeApi.token_review, or what answers like it; KubeError."""
        self._review = review
        self._audience = audience
        self._now = wall_clock
        # Proven: when reviewed, and until when it may be believed. Refused: until when, and why.
        self._proven: OrderedDict[_Key, tuple[float, float]] = OrderedDict()
        self._refused: OrderedDict[_Key, tuple[float, str]] = OrderedDict()
        self._asking: dict[_Key, asyncio.Future[None]] = {}
        self._turns = asyncio.Semaphore(REVIEWS_AT_ONCE)
        self._away_until_s = 0.0

    async def check(self, token: str, uid: str) -> None:
        """Returns where the token is that of the pod with this uid; NotProven."""
        if not uid or len(uid) > _UID_CHARACTERS_MOST:
            raise NotProven(CUDA_ERROR_NOT_PERMITTED, "a pod's group is its uid, and ORION_GROUP_ID is not one",
                            "set it from metadata.uid (orion's admission webhook does)")  # fmt: skip
        key = (hashlib.sha256(token.encode()).digest(), uid)
        now_s = self._now()
        until_s, why = self._refused.get(key, (0.0, ""))
        if until_s > now_s:
            raise _refused(why)
        reviewed_s, until_s = self._proven.get(key, (0.0, 0.0))
        if until_s > now_s and (reviewed_s + FRESH_S > now_s or self._away_until_s > now_s):
            return
        asking = self._asking.get(key)
        if asking is None:
            if len(self._asking) >= WAITING_MOST:
                raise _unanswered("too many pods ask at once")
            asking = asyncio.ensure_future(self._ask(key, token))
            self._asking[key] = asking
            asking.add_done_callback(lambda done: self._asked(key, done))
        await asyncio.shield(asking)  # the others of this pod wait for the same answer

    def _asked(self, key: _Key, done: asyncio.Future[None]) -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever asked may be gone

    async def close(self) -> None:
        """Whoever waits is refused."""
        for asking in list(self._asking.values()):
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, key: _Key, token: str) -> None:
        uid = key[1]
        try:
            async with self._turns:
                reviewed = await self._review(token, [self._audience])
        except (KubeError, AttributeError, TypeError) as error:  # the latter: an answer that is no TokenReview
            now_s = self._now()
            self._away_until_s = now_s + AWAY_S
            _, until_s = self._proven.get(key, (0.0, 0.0))
            if until_s > now_s:
                log.warning("the API server does not review tokens (%s): pod %s is believed as before", error, uid)
                return
            log.warning("the API server does not review tokens: %s", error)
            raise _unanswered(str(error)) from error
        why = self._why_not(reviewed, uid)
        now_s = self._now()
        self._away_until_s = 0.0
        if why:
            self._proven.pop(key, None)
            _keep(self._refused, key, (now_s + REFUSED_S, why))
            log.warning("a client that says that it is pod %s is refused: %s", uid, why)
            raise _refused(why)
        ends_s = expiry_of(token)
        until_s = now_s + STALE_S if ends_s is None else min(now_s + STALE_S, ends_s)
        _keep(self._proven, key, (now_s, until_s))

    def _why_not(self, reviewed: Reviewed, uid: str) -> str:
        if not reviewed.authenticated:
            return f"the API server does not accept its token: {reviewed.error[:160] or 'it gives no reason'}"
        if self._audience not in reviewed.audiences:  # token_review has checked it: once more, it is what this is for
            return f"its token is not for the audience {self._audience}"
        if not reviewed.pod_uid:
            return "its token is not bound to a pod"
        return "" if reviewed.pod_uid == uid else "its token is that of another pod"


def _keep(table: OrderedDict[_Key, Value], key: _Key, value: Value) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > ENTRIES_MOST:
        table.popitem(last=False)


def _refused(why: str) -> NotProven:
    return NotProven(CUDA_ERROR_NOT_PERMITTED, f"this client is not the pod that ORION_GROUP_ID names: {why}",
                     "a pod shows its own token, projected where ORION_TOKEN_FILE says")  # fmt: skip


def _unanswered(why: str) -> NotProven:
    return NotProven(CUDA_ERROR_DEVICE_UNAVAILABLE, "the controller cannot tell which pod this is, because the "
                     f"Kubernetes API server does not answer ({why[:160]})", "try again in a moment")  # fmt: skip
