"""Simulated servers and clients that speak the real protocol over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from orion_controller.pool import Policies
from orion_controller.service import Controller, Keys
from orion_controller.store import Store
from orion_server.pool_link import Command, CommandError, PoolLink
from orion_server.pool_offer import VGPUS_S
from tests.controller.simulated import SimulatedServer, wish
from wire import pool as wire
from wire.ticket import TicketError

Answer = wire.Allocated | wire.Queued | wire.LookedUp | wire.NotLeader | wire.Error


class Leads:
    """The only replica."""

    is_leader = True
    leader_address = ""
    leader_url = ""


class LinkedServer:
    """orion-server's own connection to a controller, with nothing behind it."""

    def __init__(self, simulated: SimulatedServer, controller: str, key: str = "", context: Any = None) -> None:
        self.simulated = simulated
        self.key = key
        self.commands: list[Command] = []
        self.refuses: CommandError | None = None
        self._told_at_s = -math.inf
        self.link = PoolLink(controller.split(","), simulated.name, self, context=context)
        self.link.instance = simulated.instance
        self.link.start()

    def registration(self, request_id: int, instance: str) -> wire.Register:
        said = self.simulated.register()
        said.id, said.key = request_id, self.key
        return said

    def heartbeat(self, request_id: int, instance: str, with_sessions: bool) -> wire.Heartbeat:
        said = self.simulated.heartbeat()
        said.id = request_id
        said.sessions = said.sessions if with_sessions else None
        # As orion-server's, where every vGPU does something else all the time.
        if time.monotonic() - self._told_at_s < VGPUS_S:
            said.vgpus, said.is_whole = None, False
        else:
            self._told_at_s = time.monotonic()
        return said

    async def command(self, asked: Command) -> None:
        self.commands.append(asked)
        if self.refuses is not None:
            raise self.refuses
        if isinstance(asked, wire.EndSessions):
            for session, report in list(self.simulated.sessions.items()):
                if session == asked.session or (asked.allocation and report.allocation == asked.allocation):
                    self.end(session)

    def hang(self) -> None:
        """Says nothing more, whatever it hears."""
        self.link._beat = lambda: None  # type: ignore[method-assign]
        if self.link._timer is not None:
            self.link._timer.cancel()

    def go_on(self) -> None:
        del self.link._beat
        self.link._beat()

    def attach(self, data: bytes) -> str:
        """A client comes with a ticket; TicketError."""
        session = self.simulated.attach(self.link.check(data))
        self.link.changed()
        return session

    def end(self, session: str) -> None:
        self.simulated.end(session)
        self.link.changed()


class LinkedClient:
    """A client's DEALER."""

    _encoder = msgspec.msgpack.Encoder()
    _decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

    def __init__(self, controller: str, context: zmq.asyncio.Context | None = None) -> None:
        self._context = context or zmq.asyncio.Context.instance()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{controller}")
        self._ids = itertools.count(1)

    async def ask(self, message: Any, timeout_s: float = 20.0) -> Any:
        message.id = next(self._ids)
        await self._socket.send(self._encoder.encode(message))
        answer = self._decoder.decode(await asyncio.wait_for(self._socket.recv(), timeout_s))
        assert answer.id == message.id
        return answer

    async def allocate(self, **values: object) -> Any:
        return await self.ask(wish(**values))

    async def raw(self, body: bytes) -> bytes:
        await self._socket.send(body)
        return bytes(await asyncio.wait_for(self._socket.recv(), 20.0))

    async def tell(self, message: Any) -> None:
        message.id = next(self._ids)
        await self._socket.send(self._encoder.encode(message))

    def close(self) -> None:
        self._socket.close()


class World:
    """A controller on a store, simulated servers and clients; all of it in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, LinkedServer] = {}
        self.clients: list[LinkedClient] = []
        self.controller: Controller
        self.store: Store
        self.address = "127.0.0.1:0"

    async def start(self, policies: Policies | None = None, keys: Keys | None = None, **options: Any) -> None:
        self.store = await asyncio.to_thread(Store.open, f"sqlite:///{self.folder / 'pool.db'}")
        self.store.fence(None)
        self.controller = Controller(self.store, Leads(), name="test", policies=policies, keys=keys, **options)
        await self.controller.take_over()
        host, port = self.address.split(":")
        self.address = self.controller.listen(host, int(port))

    async def stop(self) -> None:
        await self.controller.close()
        await self.store.close()

    def server(self, name: str, key: str = "", **values: Any) -> LinkedServer:
        self.servers[name] = LinkedServer(SimulatedServer(name, **values), self.address, key)
        return self.servers[name]

    def client(self) -> LinkedClient:
        self.clients.append(LinkedClient(self.address))
        return self.clients[-1]

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def stores_nothing(self, timeout_s: float = 20.0) -> None:
        """What has ended is taken from the store soon after it has."""
        async with asyncio.timeout(timeout_s):
            while (await self.store.load()).allocations:
                await asyncio.sleep(0.01)

    async def joined(self, *names: str) -> None:
        await self.until(lambda: all(
            name in self.controller.pool.servers and not self.controller.pool.servers[name].is_lost for name in names
        ))  # fmt: skip


@contextlib.asynccontextmanager
async def world(folder: Path, **values: Any) -> AsyncIterator[World]:
    made = World(folder)
    await made.start(**values)
    try:
        yield made
    finally:
        for server in made.servers.values():
            server.link.close()
        for client in made.clients:
            client.close()
        await made.stop()


__all__ = ["CommandError", "Keys", "LinkedClient", "LinkedServer", "Policies", "TicketError", "World", "world"]
