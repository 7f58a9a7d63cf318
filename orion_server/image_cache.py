"""Images that clients have uploaded, kept by content for the next client: one cache for the whole server.

A worker runs a tenant's kernels, so what it says is hostile. What it gives is hashed here before it is kept, and is
sealed memory that nobody can change any more. What is kept goes to a session only if it uploaded the same bytes itself,
or if its client answers a fresh nonce with SHA-256(nonce, image): a hash alone, which may leak, opens nothing. Sessions
of one group (user and ORION_GROUP_ID) count as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import hmac
import logging
import mmap
import os
import secrets
import socket
import struct
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orion_server import shares
from wire import control

log = logging.getLogger("orion.images")

# orion_server/engine/image.c: kind, tag, size, hash, nonce or proof.
_PACKET = struct.Struct("<IIQ32s32s")
_ASK_LOOKUP, _ASK_PROOF, _GIVE_IMAGE = 1, 2, 3
_MISSING, _HERE, _PROVE = 0, 1, 2
_NOTHING = bytes(32)

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_IMAGE_MAX_BYTES = 2 << 30
_JOBS_MAX = 16  # of one worker at a time; further ones are answered "missing"
_IMAGES_MAX = 512  # each holds a descriptor of the daemon, however small it is
_KEEPING_MAX = 64  # uploads that are being hashed, of all workers; further ones are not kept
_PACKETS_LEFT_MAX = 1024  # of a worker that has ended: more than its socket can hold
_CHALLENGES_MAX = 64
_OWNERS_MAX = 256  # of one image; a forgotten one proves again


class BadImage(Exception):
    """What a worker gave cannot be kept."""


@dataclass
class Counters:
    """What the cache has done; `uploads` are images that a client had to bring."""

    hits: int = 0
    misses: int = 0
    refused_proofs: int = 0
    uploads: int = 0
    uploaded_bytes: int = 0
    evicted: int = 0


@dataclass(eq=False)
class _Image:
    fd: int  # -1: given up
    size_bytes: int
    owners: OrderedDict[str, None] = field(default_factory=OrderedDict)
    challenge: tuple[bytes, bytes] | None = None  # a nonce that nobody has seen, and what proves the image by it
    is_preparing: bool = False

    def add_owner(self, owner: str) -> None:
        self.owners[owner] = None
        self.owners.move_to_end(owner)
        if len(self.owners) > _OWNERS_MAX:
            self.owners.popitem(last=False)


class ImageCache:
    """Sealed memfds by SHA-256, the least recently used given up first. Belongs to the event loop's thread."""

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self.counters = Counters()
        self.size_bytes = 0
        self._keeping_bytes = 0  # of uploads that are being hashed: as bounded as what is kept
        self._images: OrderedDict[bytes, _Image] = OrderedDict()
        self._arriving: dict[bytes, asyncio.Future[None]] = {}
        self._hashing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")
        self._keeping: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._images)

    def close(self) -> None:
        """Gives all memory back."""
        for task in self._keeping:
            task.cancel()
        self._hashing.shutdown(wait=False, cancel_futures=True)
        while self._images:
            self._evict()

    def stats(self) -> control.ImageStats:
        """For the answer to `stats`."""
        c = self.counters
        return control.ImageStats(
            count=len(self),
            size_bytes=self.size_bytes,
            bound_bytes=self.bound_bytes,
            hits=c.hits,
            misses=c.misses,
            refused_proofs=c.refused_proofs,
            uploads=c.uploads,
            uploaded_bytes=c.uploaded_bytes,
            evicted=c.evicted,
        )

    async def find(self, digest: bytes, size_bytes: int) -> _Image | None:
        """The image, once one that is being hashed now is there."""
        arriving = self._arriving.get(digest)
        if arriving is not None:
            await asyncio.shield(arriving)
        image = self._images.get(digest)
        if image is None or image.size_bytes != size_bytes:
            return None
        self._images.move_to_end(digest)
        return image

    def take_challenge(self, image: _Image) -> tuple[bytes, bytes | None]:
        """A nonce for one answer, and the right answer where that is known already."""
        prepared, image.challenge = image.challenge, None
        return prepared or (secrets.token_bytes(32), None)

    def prepare_challenge(self, image: _Image) -> None:
        """Hashes for the next client who has to prove, who then need not wait for it. After a proof that held: one who
        only asks makes no work."""
        if image.challenge is None and not image.is_preparing and len(self._keeping) < _KEEPING_MAX:
            image.is_preparing = True
            task = asyncio.create_task(self._prepare_challenge(image))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def _prepare_challenge(self, image: _Image) -> None:
        nonce = secrets.token_bytes(32)
        try:
            if image.fd >= 0:
                image.challenge = (nonce, await self._digest(image.fd, image.size_bytes, nonce))
        finally:
            image.is_preparing = False

    async def check_proof(self, image: _Image, nonce: bytes, proof: bytes, expected: bytes | None) -> bool:
        """Whether `proof` was made from this image's bytes. The image may have been given up meanwhile."""
        if expected is None:
            expected = await self._digest(image.fd, image.size_bytes, nonce)
        return hmac.compare_digest(expected, proof)

    def give(self, digest: bytes, size_bytes: int, fd: int, owner: str) -> None:
        """Takes what `owner` uploaded, if it is what it is said to be; its worker may end meanwhile. Owns `fd`."""
        if self._keeping_bytes + size_bytes > self.bound_bytes or len(self._keeping) >= _KEEPING_MAX:
            os.close(fd)
            return
        self._keeping_bytes += size_bytes
        task = asyncio.create_task(self._keep(digest, size_bytes, fd, owner))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, digest: bytes, size_bytes: int, fd: int, owner: str) -> None:
        try:
            await self._check_and_keep(digest, size_bytes, fd, owner)
        except (BadImage, OSError) as error:
            log.warning("%s: image not kept: %s", owner, error)
        finally:
            self._keeping_bytes -= size_bytes
            os.close(fd)

    async def _check_and_keep(self, digest: bytes, size_bytes: int, fd: int, owner: str) -> None:
        _check_sealed(fd, size_bytes)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        first = self._arriving.setdefault(digest, arrived) is arrived
        try:
            actual = await self._digest(fd, size_bytes, b"")
        finally:
            if first:
                del self._arriving[digest]
                # Whoever waits looks again, after this coroutine has gone on.
                loop.call_soon(arrived.set_result, None)
        if actual != digest:
            raise BadImage("its bytes have another hash than was said")
        image = self._images.get(digest)
        if image is None:
            while self.size_bytes + size_bytes > self.bound_bytes or len(self) >= _IMAGES_MAX:
                self._evict()
            image = _Image(os.dup(fd), size_bytes)
            self._images[digest] = image
            self.size_bytes += size_bytes
        image.add_owner(owner)
        self.prepare_challenge(image)
        self.counters.uploads += 1
        self.counters.uploaded_bytes += size_bytes

    def forget_owner(self, owner: str) -> None:
        """A session without a group has ended: nobody else goes by its name."""
        for image in self._images.values():
            image.owners.pop(owner, None)

    async def _digest(self, fd: int, size_bytes: int, prefix: bytes) -> bytes:
        # Mapped here: the descriptor may be closed before the thread's turn comes.
        view = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        return await asyncio.get_running_loop().run_in_executor(self._hashing, _digest, view, prefix)

    def _evict(self) -> None:
        _, image = self._images.popitem(last=False)
        self.size_bytes -= image.size_bytes
        self.counters.evicted += 1
        os.close(image.fd)
        image.fd = -1  # its number may be another file's by the time that somebody who waits looks again


def _digest(view: mmap.mmap, prefix: bytes) -> bytes:
    with view:
        state = hashlib.sha256(prefix)
        state.update(view)
        return state.digest()


def _check_sealed(fd: int, size_bytes: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadImage(f"not a memfd: {error.strerror}") from error
    if seals & _SEALS != _SEALS:
        raise BadImage("its memory is not sealed")
    if not 0 < size_bytes <= _IMAGE_MAX_BYTES or os.fstat(fd).st_size != size_bytes:
        raise BadImage("it has another size than was said")


class ImageDesk:
    """One worker's socket of packets: its engine asks here for images and gives those that were uploaded."""

    def __init__(self, cache: ImageCache, sock: socket.socket) -> None:
        self._cache = cache
        self._socket = sock
        self._owner = ""
        self._is_group = False
        self._shares: shares.ShareDesk | None = None
        self._challenges: OrderedDict[bytes, tuple[bytes, bytes | None]] = OrderedDict()
        self._jobs: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._on_packet)

    def open(self, session: str, uid: int, group: str, shared: shares.ShareDesk | None = None) -> None:
        """From now on the worker serves this session; before that it gets nothing. `shared`: for its other packets."""
        self._shares = shared
        self._is_group = bool(group)
        self._owner = f"group {uid} {group}" if group else f"session {session}"

    def close(self) -> None:
        """The worker has ended."""
        if self._socket.fileno() < 0:
            return
        for _ in range(_PACKETS_LEFT_MAX):  # what it gave last is still to be kept
            if not self._on_packet():
                break
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        for job in self._jobs:
            job.cancel()
        if self._shares is not None:
            self._shares.close()
        if self._owner and not self._is_group:
            self._cache.forget_owner(self._owner)

    def _on_packet(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _PACKET.size + 1, 4, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data, fds = b"", []
        fd = fds.pop() if len(fds) == 1 else -1
        for extra in fds:
            os.close(extra)
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        elif len(data) == _PACKET.size and self._owner:
            kind, tag, size_bytes, digest, extra_bytes = _PACKET.unpack(data)
            if kind == _GIVE_IMAGE and fd >= 0:
                self._cache.give(digest, size_bytes, fd, self._owner)
                fd = -1
            elif kind == _ASK_LOOKUP:
                self._start_or_miss(tag, self._look_up(tag, digest, size_bytes))
            elif kind == _ASK_PROOF:
                self._start_or_miss(tag, self._prove(tag, digest, size_bytes, extra_bytes))
            elif kind >= shares.FIRST_KIND and self._shares is not None:
                if self._shares.handle(
                    kind, size_bytes, digest + extra_bytes, fd, functools.partial(self._answer_share, tag)
                ):
                    fd = -1
        if fd >= 0:
            os.close(fd)
        return bool(data)

    def _start(self, job: Coroutine[Any, Any, None]) -> bool:
        if len(self._jobs) >= _JOBS_MAX:
            job.close()
            return False
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return True

    def _start_or_miss(self, tag: int, job: Coroutine[Any, Any, None]) -> None:
        if not self._start(job):
            self._answer(_MISSING, tag)

    def _answer(self, kind: int, tag: int, size_bytes: int = 0, nonce: bytes = _NOTHING, fd: int = -1) -> None:
        packet = _PACKET.pack(kind, tag, size_bytes, _NOTHING, nonce)
        # A worker that does not read its answers does without them: its client uploads after a while.
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [packet], [fd] if fd >= 0 else [])

    def _answer_share(self, tag: int, kind: int, size_bytes: int, body: bytes, fd: int) -> None:
        with contextlib.suppress(OSError):  # as above
            packet = _PACKET.pack(kind, tag, size_bytes, body[:32], body[32:])
            socket.send_fds(self._socket, [packet], [fd] if fd >= 0 else [])

    async def _look_up(self, tag: int, digest: bytes, size_bytes: int) -> None:
        image = await self._cache.find(digest, size_bytes)
        if image is None:
            self._cache.counters.misses += 1
            self._answer(_MISSING, tag)
        elif self._owner in image.owners:
            self._hit(tag, image)
        else:
            nonce, expected = self._cache.take_challenge(image)
            self._challenges[digest] = (nonce, expected)
            if len(self._challenges) > _CHALLENGES_MAX:
                self._challenges.popitem(last=False)
            self._answer(_PROVE, tag, size_bytes, nonce)

    async def _prove(self, tag: int, digest: bytes, size_bytes: int, proof: bytes) -> None:
        challenge = self._challenges.pop(digest, None)
        image = await self._cache.find(digest, size_bytes) if challenge is not None else None
        if challenge is None or image is None:
            self._cache.counters.misses += 1
            self._answer(_MISSING, tag)
        elif not await self._cache.check_proof(image, challenge[0], proof, challenge[1]):
            self._cache.counters.refused_proofs += 1
            log.warning("%s: asked for an image that its client does not have", self._owner)
            self._answer(_MISSING, tag)
        elif image.fd < 0:
            self._cache.counters.misses += 1
            self._answer(_MISSING, tag)
        else:
            image.add_owner(self._owner)
            self._cache.prepare_challenge(image)
            self._hit(tag, image)

    def _hit(self, tag: int, image: _Image) -> None:
        self._cache.counters.hits += 1
        self._answer(_HERE, tag, image.size_bytes, fd=image.fd)
