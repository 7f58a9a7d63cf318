"""Tickets: what a controller gives a client, and a server checks without asking anybody.

A ticket is a msgpack array followed by its HMAC-SHA256. Each server has a key of its own, which the controller derives
from the pool's secret and tells the server when it registers: no server can make tickets for another.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAC_BYTES = 32
MAX_TICKET_BYTES = 2048

Text = Annotated[str, Meta(max_length=255)]
Count = Annotated[int, Meta(ge=0, le=1 << 30)]


class TicketError(Exception):
    """A ticket that a server does not accept; the message says why."""


class Ticket(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """vGPUs of one server: one on each GPU of `ordinals`, in the order in which the program counts them."""

    version: Literal[1] = 1
    allocation: Annotated[str, Meta(min_length=1, max_length=64)]
    server: Text
    ordinals: Annotated[tuple[Annotated[int, Meta(ge=0, lt=64)], ...], Meta(min_length=1, max_length=64)]
    gmem_mib: Count
    ratio: Annotated[int, Meta(ge=0, le=100)]
    ratio_policy: Literal["", "hard", "elastic"] = ""
    group: Text = ""
    shared: bool = False  # by all sessions of the allocation
    expires_s: float  # Unix time by the controller's clock


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Ticket] = msgspec.msgpack.Decoder(Ticket)


def server_key(pool_secret: bytes, server: str) -> bytes:
    """The 32-byte key for the tickets of one server."""
    return hmac.digest(pool_secret, b"orion ticket key\0" + server.encode(), hashlib.sha256)


def stats_key(key: bytes, group: str = "") -> str:
    """What a server off loopback wants to see before it tells `stats`: its controller tells those who showed it the
    pool's client key; a pod, who proved its `group`, the key for what that group has. `key`: the server's, for
    tickets."""
    about = b"orion stats key" + (b" of group\0" + group.encode() if group else b"")
    return hmac.digest(key, about, hashlib.sha256).hex()


def sign(ticket: Ticket, key: bytes) -> bytes:
    """The ticket as bytes, with the proof that its maker has the key."""
    body = _encoder.encode(ticket)
    return body + hmac.digest(key, body, hashlib.sha256)


def verify(data: bytes, key: bytes, server: str, now_s: float) -> Ticket:
    """The ticket in `data`; TicketError when it is forged, for another server, or expired. `now_s`: the controller's
    clock."""
    body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    if len(data) > MAX_TICKET_BYTES or not hmac.compare_digest(hmac.digest(key, body, hashlib.sha256), mac):
        raise TicketError("the ticket is not one of this pool's controller")
    try:
        ticket = _decoder.decode(body)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise TicketError(f"the ticket cannot be read: {error}") from error
    if ticket.server != server:
        raise TicketError(f"the ticket is for server {ticket.server}, this is {server}")
    if now_s > ticket.expires_s:
        raise TicketError(f"the ticket has expired {now_s - ticket.expires_s:.0f} s ago")
    return ticket
