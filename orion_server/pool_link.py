"""A server's place in a pool: it registers with the controller, tells what it has, and does what it is told.

The controller is asked nothing on the way of a client: tickets are checked here. Without it everything goes on but new
sessions, and what happens meanwhile is told when it is back.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import zmq

from wire import curve, pool, ticket
from wire.dealer import DealerSocket

log = logging.getLogger("orion.pool")

# A controller that has not answered for this long is not there: the next one is tried.
SILENCE_S = 5.0
ASK_S = 2.4  # with every third heartbeat
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[pool.ToServer] = msgspec.msgpack.Decoder(pool.ToServer)

Command = pool.ResizeAllocation | pool.EndSessions | pool.SetDraining


class CommandError(Exception):
    """What the controller asked for cannot be done."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Offer(Protocol):
    """What the server is and has now."""

    def registration(self, request_id: int, instance: str) -> pool.Register:
        """All of it."""
        ...

    def heartbeat(self, request_id: int, instance: str, with_sessions: bool) -> pool.Heartbeat:
        """What changes. `with_sessions`: all sessions, else none."""
        ...

    async def command(self, asked: Command) -> None:
        """Does it; CommandError."""
        ...


class PoolLink:
    """Belongs to the event loop's thread."""

    def __init__(self, controllers: list[str], name: str, offer: Offer,
                 clock: Callable[[], float] = time.monotonic,
                 context: zmq.Context[zmq.Socket[bytes]] | None = None,
                 controller_key: str = "") -> None:  # fmt: skip
        self._context = context
        self._controller_key = controller_key
        self._controllers = controllers
        self.name = name
        self._offer = offer
        self._clock = clock
        self.instance = secrets.token_hex(8)
        self._ids = itertools.count(1)
        self._next = 0
        self._socket: DealerSocket | None = None
        self._heard_s = 0.0
        self._is_registered = False
        self._sessions_due = True
        self._heartbeat_s = pool.HEARTBEAT_S
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._key = b""
        self._ahead_s = 0.0  # of the controller's clock before this one's
        self._spent: dict[bytes, float] = {}  # tickets that were used, until they expire
        self._told_refusal = ""
        self._told_silence: dict[str, str] = {}  # the last sentence about each controller

    # ------------------------------------------------------------------------------------------ tickets

    def admits_to_stats(self, shown: str, group: str = "") -> bool:
        """Whether that is what the controller tells those who may ask for `stats`; of a group: a pod of it."""
        return bool(self._key) and hmac.compare_digest(shown.encode(), ticket.stats_key(self._key, group).encode())

    def check(self, data: bytes) -> ticket.Ticket:
        """The ticket, used up by this; TicketError."""
        if not self._key:
            raise ticket.TicketError("this server has not reached its controller yet")
        now_s = time.time() + self._ahead_s
        found = ticket.verify(data, self._key, self.name, now_s)
        self._spent = {mac: until_s for mac, until_s in self._spent.items() if until_s >= now_s}
        mac = data[-ticket.MAC_BYTES :]
        if mac in self._spent and not found.shared:
            raise ticket.TicketError("the ticket has been used already")
        self._spent[mac] = found.expires_s
        return found

    def give_back(self, data: bytes) -> None:
        """The session did not come about: its client may come again."""
        self._spent.pop(data[-ticket.MAC_BYTES :], None)

    # ------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Registers, now and whenever it has to."""
        self._connect(self._controllers[self._next])
        self._beat()

    def changed(self) -> None:
        """A session has begun or ended, or what is offered has changed: told at once."""
        self._sessions_due = True
        if self._soon is None and self._socket is not None:
            self._soon = asyncio.get_running_loop().call_soon(self._beat_now)

    def register_again(self) -> None:
        """What the server offers has changed."""
        self._is_registered = False
        self.changed()

    def close(self) -> None:
        """Leaves in good order: its sessions have ended."""
        if self._timer is not None:
            self._timer.cancel()
        if self._soon is not None:
            self._soon.cancel()
        for task in list(self._tasks):
            task.cancel()
        if self._socket is not None:
            self._send(pool.Leave(id=next(self._ids), server=self.name, instance=self.instance))
            self._socket.close()
            self._socket = None

    def _connect(self, address: str) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = DealerSocket(address, self._receive, pool.MAX_MESSAGE_BYTES, self._context,
                                    self._controller_key)  # fmt: skip
        self._is_registered = False
        self._heard_s = self._clock()

    def _beat_now(self) -> None:
        self._soon = None
        if self._timer is not None:
            self._timer.cancel()
        self._beat()

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._heartbeat_s, self._beat)
        assert self._socket is not None
        if self._clock() - self._heard_s > SILENCE_S:
            self._spawn(self._tell_silence(self._socket.address))
            self._next = (self._next + 1) % len(self._controllers)
            self._connect(self._controllers[self._next])
        request_id = next(self._ids) & 0xFFFFFFFF
        if not self._is_registered:
            self._send(self._offer.registration(request_id, self.instance))
            return
        message = self._offer.heartbeat(request_id, self.instance, self._sessions_due)
        message.asks = self._sessions_due or self._clock() - self._heard_s > ASK_S
        self._send(message)
        self._sessions_due = False

    def _send(self, message: pool.ToController) -> None:
        assert self._socket is not None
        self._socket.send(_encoder.encode(message))

    # ------------------------------------------------------------------------------------------ from the controller

    def _receive(self, body: bytes) -> None:
        try:
            message = _decoder.decode(body)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("the controller said something that is not understood: %s", error)
            return
        self._heard_s = self._clock()
        match message:
            case pool.Registered():
                self._welcome(message)
            case pool.HeartbeatOk():
                self._ahead_s = message.now_s - time.time()
            case pool.Unknown():
                self._is_registered = False
                self.changed()
            case pool.NotLeader():
                self._follow(message.leader)
            case pool.Error():
                if str(message.message) != self._told_refusal:
                    log.error("the controller refuses this server: %s%s", message.message,
                              f" ({message.hint})" if message.hint else "")  # fmt: skip
                self._told_refusal = message.message
                self._is_registered = False
            case _:
                self._spawn(self._obey(message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_silence(self, address: str) -> None:
        """Why a controller may not answer: once, until it has or something else is the reason."""
        speaks = await asyncio.to_thread(curve.mechanism, address, SILENCE_S)
        if speaks == "CURVE" and not self._controller_key:
            why = "takes encrypted connections only: give orion-server what `orion-controller key` prints there as " \
                  "--controller-key"  # fmt: skip
        elif speaks == "NULL" and self._controller_key:
            why = "does not encrypt, and --controller-key asks for it: start orion-controller with --curve on"
        elif speaks == "CURVE":
            why = "does not answer: is --controller-key what `orion-controller key` prints there?"
        else:
            why = "does not answer"
        is_new = self._told_silence.get(address) != why
        self._told_silence[address] = why
        log.log(logging.WARNING if is_new else logging.DEBUG, "the controller at %s %s", address, why)

    def _welcome(self, message: pool.Registered) -> None:
        assert self._socket is not None
        if not self._is_registered:
            log.info("in the pool of %s at %s as %s", message.controller, self._socket.address, self.name)
        self._is_registered = True
        self._told_refusal = ""
        self._told_silence.clear()
        self._key = message.ticket_key
        self._ahead_s = message.now_s - time.time()
        self._heartbeat_s = min(max(message.heartbeat_s, 0.05), 10.0)
        if message.draining:  # not the other way: the server itself may be about to stop
            self._spawn(self._offer.command(pool.SetDraining(id=0, draining=True)))
        # A session may have begun or ended since the registration was written.
        self.changed()

    def _follow(self, leader: str) -> None:
        assert self._socket is not None
        if leader and leader != self._socket.address:
            self._connect(leader)
            self.changed()

    async def _obey(self, asked: Command) -> None:
        answer: pool.Done | pool.Error
        try:
            await self._offer.command(asked)
            answer = pool.Done(id=asked.id)
        except CommandError as error:
            answer = pool.Error(id=asked.id, code=error.code, message=str(error)[:400], hint=error.hint[:400])
        except Exception:
            log.exception("%s failed", type(asked).__name__)
            answer = pool.Error(id=asked.id, code=999, message="internal error of orion-server",
                                hint="see the log of orion-server")  # fmt: skip
        if self._socket is not None:
            self._send(answer)
