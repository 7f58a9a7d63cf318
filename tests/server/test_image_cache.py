"""The server's cache of images: what is kept, who gets it, and that it stays within its bound."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from orion_server import image_cache
from orion_server.image_cache import ImageCache, ImageDesk

MIB = 1 << 20
MISSING, HERE, PROVE = 0, 1, 2
LOOKUP, PROOF, GIVE = 1, 2, 3
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def memory(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def kept_open() -> set[str]:
    """This process's descriptors of images and sockets, by inode; what other threads open meanwhile is none of them."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("/memfd:", "socket:")):
                found.add(f"{fd} {target}")
    return found


class Worker:
    """The engine's side of one desk."""

    def __init__(self, cache: ImageCache, session: str, group: str = "", uid: int = 0) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.desk = ImageDesk(cache, ours)
        if session:
            self.desk.open(session, uid, group)
        self.socket.setblocking(False)

    def send(self, kind: int, data: bytes, extra: bytes = bytes(32), fd: int = -1, **said: Any) -> None:
        digest = said.get("digest", hashlib.sha256(data).digest())
        packet = image_cache._PACKET.pack(kind, said.get("tag", 7), said.get("size", len(data)), digest, extra)
        socket.send_fds(self.socket, [packet], [fd] if fd >= 0 else [])
        if fd >= 0:
            os.close(fd)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Kind, nonce, and the content of the memfd that came with it."""
        for _ in range(1000):
            try:
                packet, fds, _, _ = socket.recv_fds(self.socket, 200, 4)
                break
            except BlockingIOError:
                await asyncio.sleep(0.005)
        else:
            raise TimeoutError
        kind, tag, size, _, nonce = image_cache._PACKET.unpack(packet)
        assert tag == 7
        content = b""
        for fd in fds:
            content = os.pread(fd, size, 0)
            os.close(fd)
        return kind, nonce, content

    async def ask(self, data: bytes, **said: Any) -> tuple[int, bytes, bytes]:
        self.send(LOOKUP, data, **said)
        return await self.answer()

    async def prove(self, data: bytes, proof: bytes) -> tuple[int, bytes, bytes]:
        self.send(PROOF, data, proof)
        return await self.answer()

    def close(self) -> None:
        self.socket.close()
        self.desk.close()


def scenario(bound_bytes: int = 8 * MIB) -> Callable[[Callable[[ImageCache], Coroutine[Any, Any, None]]], Any]:
    """Makes a test of a coroutine that gets a cache."""

    def decorate(body: Callable[[ImageCache], Coroutine[Any, Any, None]]) -> Any:
        def test() -> None:
            async def run() -> None:
                cache = ImageCache(bound_bytes)
                try:
                    await body(cache)
                finally:
                    cache.close()
                assert cache.size_bytes == 0

            before = kept_open()
            asyncio.run(run())
            deadline_s = time.monotonic() + 20.0  # a thread may be hashing what nobody waits for any more
            while not kept_open() <= before and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert kept_open() <= before

        test.__doc__ = body.__doc__
        return test

    return decorate


@scenario()
async def test_what_was_uploaded_is_there(cache: ImageCache) -> None:
    image = os.urandom(MIB)
    worker = Worker(cache, "a")
    assert (await worker.ask(image))[0] == MISSING
    worker.send(GIVE, image, fd=memory(image))
    kind, _, content = await worker.ask(image)
    assert kind == HERE and content == image
    assert (cache.counters.hits, cache.counters.misses, cache.counters.uploads) == (1, 1, 1)
    worker.close()


@scenario()
async def test_others_prove_that_they_have_it(cache: ImageCache) -> None:
    image = os.urandom(MIB)
    first, second = Worker(cache, "a"), Worker(cache, "b")
    first.send(GIVE, image, fd=memory(image))
    assert (await first.ask(image))[0] == HERE
    kind, nonce, content = await second.ask(image)
    assert kind == PROVE and content == b"" and nonce != bytes(32)
    # The hash is known; the bytes are not.
    assert (await second.prove(image, hashlib.sha256(nonce).digest()))[0] == MISSING
    assert cache.counters.refused_proofs == 1
    # A nonce is good for one answer.
    assert (await second.prove(image, hashlib.sha256(nonce + image).digest()))[0] == MISSING
    _, fresh, _ = await second.ask(image)
    assert fresh != nonce
    kind, _, content = await second.prove(image, hashlib.sha256(fresh + image).digest())
    assert kind == HERE and content == image
    assert (await second.ask(image))[0] == HERE
    # What one session has proved is nothing to another.
    third = Worker(cache, "c")
    assert (await third.ask(image))[0] == PROVE
    for worker in (first, second, third):
        worker.close()


@scenario()
async def test_a_proof_that_was_prepared_is_as_strict(cache: ImageCache) -> None:
    image = os.urandom(MIB)
    digest = hashlib.sha256(image).digest()
    workers = [Worker(cache, name) for name in "abcde"]
    workers[0].send(GIVE, image, fd=memory(image))
    assert (await workers[0].ask(image))[0] == HERE
    kept = cache._images[digest]

    async def prepared() -> tuple[bytes, bytes]:
        while kept.challenge is None:
            await asyncio.sleep(0.005)
        return kept.challenge

    nonce, expected = await prepared()
    assert expected == hashlib.sha256(nonce + image).digest()
    assert (await workers[1].ask(image))[1] == nonce
    # Nobody else gets that nonce, and who only asks makes nobody hash.
    assert (await workers[2].ask(image))[1] != nonce
    assert kept.challenge is None and not kept.is_preparing
    assert (await workers[1].prove(image, os.urandom(32)))[0] == MISSING
    assert (await workers[1].prove(image, expected))[0] == MISSING  # one answer for a nonce
    _, own, _ = await workers[3].ask(image)
    assert (await workers[3].prove(image, hashlib.sha256(own + image).digest()))[0] == HERE
    assert (await prepared())[0] not in (nonce, own)
    assert (await workers[4].ask(image))[0] == PROVE
    for worker in workers:
        worker.close()


@scenario()
async def test_a_group_counts_as_one(cache: ImageCache) -> None:
    image = os.urandom(MIB)
    first = Worker(cache, "a", group="g", uid=1)
    first.send(GIVE, image, fd=memory(image))
    assert (await first.ask(image))[0] == HERE
    first.close()
    mate, stranger, user = Worker(cache, "b", "g", 1), Worker(cache, "c", "h", 1), Worker(cache, "d", "g", 2)
    assert (await mate.ask(image))[0] == HERE
    assert (await stranger.ask(image))[0] == PROVE
    assert (await user.ask(image))[0] == PROVE
    for worker in (mate, stranger, user):
        worker.close()


@scenario()
async def test_only_sealed_bytes_with_the_right_hash_are_kept(cache: ImageCache) -> None:
    good, bad = os.urandom(MIB), os.urandom(MIB)
    worker = Worker(cache, "a")
    digest = hashlib.sha256(good).digest()
    worker.send(GIVE, bad, digest=digest, fd=memory(bad))
    worker.send(GIVE, good, fd=memory(good, 0))
    worker.send(GIVE, good, fd=memory(good, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW))
    worker.send(GIVE, good, size=MIB - 1, fd=memory(good))
    worker.send(GIVE, good, size=0, fd=memory(good))
    worker.send(GIVE, good, fd=os.open("/dev/zero", os.O_RDONLY))
    worker.send(GIVE, good)
    assert (await worker.ask(good))[0] == MISSING
    assert len(cache) == 0
    # Sealed memory stays what it was when it was hashed.
    worker.send(GIVE, good, fd=memory(good))
    assert (await worker.ask(good))[0] == HERE
    assert (await worker.ask(good, size=MIB - 1))[0] == MISSING
    worker.close()


@scenario()
async def test_packets_that_no_engine_sends_are_dropped(cache: ImageCache) -> None:
    nobody = Worker(cache, "")
    image = os.urandom(4096)
    nobody.send(GIVE, image, fd=memory(image))
    nobody.send(LOOKUP, image)
    worker = Worker(cache, "a")
    worker.send(99, image)
    worker.send(PROOF, image)
    assert (await worker.answer())[0] == MISSING
    worker.socket.send(b"short")
    worker.socket.send(bytes(1000))
    fds = [memory(image) for _ in range(3)]
    socket.send_fds(worker.socket, [bytes(80)], fds)
    for fd in fds:
        os.close(fd)
    assert (await worker.ask(image))[0] == MISSING
    assert len(cache) == 0
    worker.close()
    nobody.close()


@scenario(bound_bytes=3 * MIB)
async def test_the_bound_holds_and_the_oldest_goes_first(cache: ImageCache) -> None:
    worker = Worker(cache, "a")
    images = [os.urandom(MIB) for _ in range(4)]
    for image in images[:3]:
        worker.send(GIVE, image, fd=memory(image))
        assert (await worker.ask(image))[0] == HERE
    assert (await worker.ask(images[0]))[0] == HERE  # used again: number 1 is the oldest now
    worker.send(GIVE, images[3], fd=memory(images[3]))
    assert (await worker.ask(images[3]))[0] == HERE
    assert cache.size_bytes == 3 * MIB and cache.counters.evicted == 1
    assert (await worker.ask(images[1]))[0] == MISSING
    assert (await worker.ask(images[0]))[0] == HERE
    large = os.urandom(3 * MIB + 1)
    worker.send(GIVE, large, fd=memory(large))
    assert (await worker.ask(large))[0] == MISSING
    assert len(cache) == 3
    worker.close()


@scenario()
async def test_what_a_worker_gave_before_its_end_is_kept(cache: ImageCache) -> None:
    image = os.urandom(MIB)
    worker = Worker(cache, "a", group="g")
    worker.send(GIVE, image, fd=memory(image))
    worker.close()
    mate = Worker(cache, "b", group="g")
    assert (await mate.ask(image))[0] == HERE
    mate.close()


@scenario(bound_bytes=2 * MIB)
async def test_an_image_given_up_while_its_proof_is_checked_is_missing(cache: ImageCache) -> None:
    """The closed descriptor's number may be another file's by then, which the worker must not get."""
    image, other = os.urandom(MIB), os.urandom(2 * MIB)
    first, second = Worker(cache, "a"), Worker(cache, "b")
    first.send(GIVE, image, fd=memory(image))
    assert (await first.ask(image))[0] == HERE
    _, nonce, _ = await second.ask(image)
    checked, go_on = asyncio.Event(), asyncio.Event()
    check_proof = cache.check_proof

    async def held(*arguments: Any) -> bool:
        answer = await check_proof(*arguments)
        checked.set()
        await go_on.wait()
        return answer

    cache.check_proof = held  # type: ignore[method-assign]
    second.send(PROOF, image, hashlib.sha256(nonce + image).digest())
    await checked.wait()
    first.send(GIVE, other, fd=memory(other))
    assert (await first.ask(other))[0] == HERE
    assert cache.counters.evicted == 1
    stranger = os.memfd_create("stranger", os.MFD_CLOEXEC)  # takes the lowest free number
    go_on.set()
    assert await second.answer() == (MISSING, bytes(32), b"")
    os.close(stranger)
    for worker in (first, second):
        worker.close()


@scenario()
async def test_small_images_do_not_take_all_descriptors(cache: ImageCache) -> None:
    worker = Worker(cache, "a")
    for i in range(image_cache._IMAGES_MAX + 10):
        image = i.to_bytes(8, "little")
        worker.send(GIVE, image, fd=memory(image))
        assert (await worker.ask(image))[0] == HERE
    assert len(cache) == image_cache._IMAGES_MAX and cache.counters.evicted == 10
    worker.close()


@scenario(bound_bytes=3 * MIB)
async def test_what_is_being_hashed_is_bounded_too(cache: ImageCache) -> None:
    images = [os.urandom(MIB) for _ in range(4)]
    for image in images:
        cache.give(hashlib.sha256(image).digest(), MIB, memory(image), "session a")
    worker = Worker(cache, "a")
    assert [(await worker.ask(image))[0] for image in images] == [HERE, HERE, HERE, MISSING]
    cache.give(hashlib.sha256(images[3]).digest(), MIB, memory(images[3]), "session a")
    assert (await worker.ask(images[3]))[0] == HERE
    worker.close()
