"""Shared memory between a container and its node's server: without the host's IPC, process ids, user and files."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orion_client.libraries import client_folder
from tests.security.server import TIMEOUT_S, Server, environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces and changes to other users")

PROGRAM = r"""
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char** argv) {
  void* cuda = dlopen("libcuda.so.1", RTLD_NOW);
  int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
  int (*retain)(void**, int) = (int (*)(void**, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
  int (*current)(void*) = (int (*)(void*))dlsym(cuda, "cuCtxSetCurrent");
  int (*allocate)(unsigned long*, size_t) = (int (*)(unsigned long*, size_t))dlsym(cuda, "cuMemAlloc_v2");
  int (*in)(unsigned long, const void*, size_t) =
      (int (*)(unsigned long, const void*, size_t))dlsym(cuda, "cuMemcpyHtoD_v2");
  int (*out)(void*, unsigned long, size_t) = (int (*)(void*, unsigned long, size_t))dlsym(cuda, "cuMemcpyDtoH_v2");
  static char text[1 << 20] = "through shared memory", back[1 << 20];
  void* context = NULL;
  unsigned long block = 0;
  int code = init(0);
  if (code == 0) code = retain(&context, 0);
  if (code == 0) code = current(context);
  if (code == 0) code = allocate(&block, sizeof text);
  if (code == 0) code = in(block, text, sizeof text);
  if (code == 0) code = out(back, block, sizeof back);
  int stranger = open(argv[1], O_CREAT | O_WRONLY, 0600);
  printf("%d %s uid %d pid %d, a file beside the sockets: %s\n", code, back, (int)getuid(), (int)getpid(),
         stranger < 0 ? strerror(errno) : "made");
  return argc < 2;
}
"""
# What a container runtime does for a pod with the plugin's mounts: namespaces of its own, an empty /dev/shm, and the
# node's folder of sockets read-only.
CONTAINER = (
    'mount -t tmpfs none /dev/shm && mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && '
    'exec setpriv --reuid "$2" --regid "$2" --clear-groups "$3" "$1/planted.sock"'
)


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.sockets = folder / "run"
        self.program = folder / "program"
        subprocess.run(["gcc", "-x", "c", "-", "-o", str(self.program), "-ldl"], input=PROGRAM, text=True, check=True)
        shutil.copy(client_folder() / "libcuda.so.1", folder)
        self.server = Server(folder / "state", "--shm-dir", str(self.sockets))

    def run(self, uid: int, transport: str) -> tuple[str, str]:
        command = ["unshare", "--mount", "--ipc", "--pid", "--uts", "--fork", "--mount-proc", "sh", "-c", CONTAINER,
                   "container", str(self.sockets), str(uid), str(self.program)]  # fmt: skip
        variables = {"PATH": os.environ["PATH"], "LD_PRELOAD": "", "LD_LIBRARY_PATH": str(self.folder),
                       "ORION_SERVER": self.server.address, "ORION_LOG": "info", "HOME": "/nowhere",
                       "ORION_TRANSPORT": transport}  # fmt: skip
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    # Not pytest's folder: it is closed to other users.
    with tempfile.TemporaryDirectory(prefix="orion-node-") as name:
        made = Node(Path(name))
        with made.server:
            yield made


@pytest.mark.parametrize("uid", [0, 1234])
def test_a_container_of_any_user_has_shared_memory(node: Node, uid: int) -> None:
    told, log = node.run(uid, "shm")
    assert told == f"0 through shared memory uid {uid} pid 1, a file beside the sockets: Read-only file system", log
    assert "over shm" in log
    assert not list(node.sockets.iterdir())  # a socket goes when its client has come


def test_without_the_folder_it_is_tcp(node: Node) -> None:
    hidden = CONTAINER.replace(
        "mount -t tmpfs none /dev/shm", 'mount -t tmpfs none /dev/shm && mount -t tmpfs none "$1"'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.CONTAINER", hidden)
        told, log = node.run(1234, "auto")
    assert told.startswith("0 through shared memory uid 1234"), log  # what the text says, not how it went
    assert "no shared memory" in log and "over tcp" in log


def test_the_folder_has_nothing_but_sockets_that_their_users_alone_can_reach(node: Node) -> None:
    mode = node.sockets.stat().st_mode
    assert stat.S_IMODE(mode) == 0o711
    assert (node.folder / "state" / "admin-token").exists()
    assert stat.S_IMODE((node.folder / "state").stat().st_mode) == 0o700


def test_sockets_of_a_server_that_was_killed_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="orion-node-") as name:
        folder = Path(name) / "run"
        folder.mkdir(0o711)
        living = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(folder / "dead.sock"))
        with living:
            living.bind(str(folder / "living.sock"))
            living.listen()
            with Server(Path(name) / "state", "--shm-dir", str(folder)):
                assert [path.name for path in folder.iterdir()] == ["living.sock"]
        folder.chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-m", "orion_server", "--device", "softgpu", "--listen", "127.0.0.1:0", "--state-dir",
             str(Path(name) / "state"), "--shm-dir", str(folder)],
            capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(),
        )  # fmt: skip
        assert done.returncode == 2 and "others may change" in done.stderr
