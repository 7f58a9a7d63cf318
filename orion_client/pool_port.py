"""Asks a controller over its ZeroMQ port (9123), as a program's library does: which servers have something of ours."""

from __future__ import annotations

import itertools
import os
import time

import msgspec

from orion_client import settings
from orion_client.control_client import (
    CONTROLLER,
    Connection,
    KeyTrouble,
    PoolKeys,
    ServerUnreachable,
    next_id,
    port_answers,
)
from wire import control, pool

_decoder: msgspec.msgpack.Decoder[pool.ToClient] = msgspec.msgpack.Decoder(pool.ToClient)


def lookup(controllers: list[str], group: str = "", pid: int = 0, timeout_s: float = 3.0) -> pool.LookedUp:
    """What a group, or a process of this user on this machine, has. `controllers`: replicas of one; the first that
    answers and leads, or knows who does, is taken. ServerUnreachable, also when it refuses."""
    request = pool.Lookup(id=next_id(), group=group[:255], host=control.boot_id(), uid=os.geteuid(), pid=pid,
                          key=(settings.setting("ORION_CLIENT_KEY") or "")[:256])  # fmt: skip
    answer: pool.ToClient | None = None
    failure = ServerUnreachable("no controller is named", "set ORION_CONTROLLER=host:9123")
    for controller in controllers:
        try:
            answer = _ask(controller, request, timeout_s)
            if isinstance(answer, pool.NotLeader) and answer.leader:
                answer = _ask(answer.leader, request, timeout_s)
        except ServerUnreachable as error:
            failure = error
            continue
        if not isinstance(answer, pool.NotLeader):
            break
        failure = ServerUnreachable(f"{controller} does not lead at present, and knows of no controller that does",
                                    "try again in a moment")  # fmt: skip
    if isinstance(answer, pool.Error):
        raise ServerUnreachable(f"the controller refused: {answer.message}", answer.hint)
    if not isinstance(answer, pool.LookedUp):
        raise failure
    return answer


def servers_of(answer: pool.LookedUp) -> dict[str, PoolKeys]:
    """Its servers' keys by address."""
    keys = itertools.zip_longest(answer.servers, answer.public_keys, answer.stats_keys, fillvalue="")
    return {server: PoolKeys(public, stats) for server, public, stats in keys if server}


def _ask(controller: str, request: pool.Lookup, timeout_s: float) -> pool.ToClient:
    try:
        key = settings.controller_key()
    except settings.SettingError as error:
        raise KeyTrouble(str(error), "correct ORION_CONTROLLER_KEY") from None
    try:
        request.token = settings.pod_token(controller)
    except settings.SettingError as error:
        raise ServerUnreachable(str(error), "correct ORION_TOKEN_FILE") from None
    why_not = port_answers(controller, timeout_s)
    if why_not:
        raise ServerUnreachable(f"no controller answers at {controller}: {why_not}",
                                "start orion-controller there or set ORION_CONTROLLER=host:9123")  # fmt: skip
    deadline_s = time.monotonic() + timeout_s
    with Connection(controller, key, CONTROLLER, pool.MAX_MESSAGE_BYTES) as connection:
        connection.send(msgspec.msgpack.encode(request))
        while (body := connection.receive(deadline_s - time.monotonic())) is not None:
            try:
                answer = _decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ServerUnreachable(f"{controller} does not answer like an orion-controller: {error}",
                                        "the controller's port is 9123 by default") from None  # fmt: skip
            if answer.id == request.id:
                return answer
    raise ServerUnreachable(f"{controller} does not answer like an orion-controller within {timeout_s:g} s",
                            "the controller's port is 9123 by default, its HTTP port is another")  # fmt: skip
