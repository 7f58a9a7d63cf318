"""A process that confines itself as a worker does and then tries what it must not be able to do.

    python -m tests.server.confined '{"uid": -1, "seccomp": "on", "lanes": false, "victim": PID, "secret": PATH,
                                      "attempts": [NAME, ...]}'

Prints, as JSON, the errno of each attempt by name; 0 where it succeeded. "wait": says "ready" and does nothing more.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable

from orion_server.worker.confinement import LANES, READY, Confinement

assert platform.machine() == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
MSG_FASTOPEN = 0x20000000
CLONE_NEWUSER = 0x10000000
# Numbers of x86_64, by name.
CALLS = {
    "ptrace": 101, "process_vm_readv": 310, "fork": 57, "vfork_number": 58, "clone": 56, "clone3": 435, "execve": 59,
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "fsopen": 430,
    "open_tree": 428, "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "io_uring_setup": 425, "init_module": 175, "finit_module": 313, "kexec_load": 246,
    "reboot": 169, "swapon": 167, "personality": 135, "setuid": 105, "setresuid": 117, "setgroups": 116,
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "open_by_handle_at": 304, "tkill": 200, "kcmp": 312,
    "mq_open": 240, "msgget": 68, "semget": 64, "syslog": 103, "iopl": 172,
}  # fmt: skip


def call(name: str, *arguments: int) -> int:
    """The errno of a system call, 0 without one. In a child that it makes, nothing goes on."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(CALLS[name]), *(ctypes.c_long(a) for a in arguments))
    if name in ("fork", "clone", "vfork_number") and result == 0:
        os._exit(0)
    return ctypes.get_errno() if result == -1 else 0


def tried(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or -1
    return 0


def read_file(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def executable_memory() -> mmap.mmap:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def make_foreign_call() -> None:
    """mov eax, 20 (getpid of i386); int 0x80; ret"""
    code = executable_memory()
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def attempts(victim: int, secret: str, listener: socket.socket) -> dict[str, Callable[[], int]]:
    """Everything that can be tried."""
    made: dict[str, Callable[[], int]] = {}
    for name in CALLS:
        made[name] = lambda name=name: call(name, 0, 0, 0, 0, 0)  # type: ignore[misc]
    made["clone"] = lambda: call("clone", signal.SIGCHLD, 0, 0, 0, 0)
    made["clone_namespace"] = lambda: call("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    made["execve"] = lambda: tried(lambda: os.execv("/bin/true", ["true"]))
    made["personality"] = lambda: call("personality", 0xFFFFFFFF)
    made["attach"] = lambda: call("ptrace", 16, victim, 0, 0)
    made["signal"] = lambda: tried(lambda: os.kill(victim, 0))
    made["signal_parent"] = lambda: tried(lambda: os.kill(os.getppid(), 0))
    made["signal_all"] = lambda: tried(lambda: os.kill(-1, 0))
    made["limits"] = lambda: tried(lambda: __import__("resource").prlimit(victim, 7))
    made["own_group"] = lambda: tried(lambda: __import__("fcntl").fcntl(listener, 8, victim))  # F_SETOWN
    made["type_into_terminal"] = lambda: tried(lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
    made["maps"] = lambda: tried(lambda: read_file(f"/proc/{victim}/maps"))
    made["mem"] = lambda: tried(lambda: os.close(os.open(f"/proc/{victim}/mem", os.O_RDONLY)))
    made["environ"] = lambda: tried(lambda: read_file(f"/proc/{victim}/environ"))
    made["descriptors"] = lambda: tried(lambda: os.listdir(f"/proc/{victim}/fd"))
    made["secret"] = lambda: tried(lambda: read_file(secret))
    made["packet_socket"] = lambda: tried(lambda: socket.socket(17, socket.SOCK_RAW).close())  # AF_PACKET
    made["vsock"] = lambda: tried(lambda: socket.socket(40, socket.SOCK_STREAM).close())  # AF_VSOCK
    made["inet_socket"] = lambda: tried(lambda: socket.socket(socket.AF_INET).close())
    made["connect"] = lambda: tried(lambda: listener.connect(("127.0.0.1", 9)))
    made["fast_open"] = lambda: tried(lambda: listener.sendto(b"x", MSG_FASTOPEN, ("127.0.0.1", 9)))
    # What a worker needs.
    made["signal_self"] = lambda: tried(lambda: os.kill(os.getpid(), 0))
    made["thread"] = lambda: tried(start_thread)
    made["memory"] = lambda: tried(lambda: os.close(os.memfd_create("x")))
    made["executable_memory"] = lambda: tried(lambda: executable_memory().close())
    made["pair"] = lambda: tried(lambda: [end.close() for end in socket.socketpair()])
    made["own_limits"] = lambda: tried(lambda: __import__("resource").getrlimit(7))
    made["own_maps"] = lambda: tried(lambda: read_file("/proc/self/maps"))
    made["own_descriptors"] = lambda: tried(lambda: os.listdir("/proc/self/fd"))
    made["foreign_call"] = lambda: tried(make_foreign_call)
    made["x32_call"] = lambda: tried(lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)))
    return made


def main() -> None:
    import fcntl  # noqa: F401  # nothing can be imported once the uid is another's
    import resource  # noqa: F401

    told = json.loads(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.shutdown(socket.SHUT_RDWR)  # could be connected from now on
    if told["seccomp"] != "none":
        confinement = Confinement(told.get("uid", -1), told.get("groups", ()), told["seccomp"])
        confinement.limit()
        confinement.become()
        confinement.forbid(READY)
        if told.get("lanes"):
            confinement.forbid(LANES)
    if told.get("wait"):
        print("ready", flush=True)
        sys.stdin.read()
        return
    known = attempts(told.get("victim", 0), told.get("secret", ""), listener)
    print(json.dumps({name: known[name]() for name in told["attempts"]}), flush=True)


if __name__ == "__main__":
    main()
