"""The pool's list as the controller's API tells it, and what of it is kept while the controller is away.

A device is no place (see devices.py), so a list that is a little old harms nobody: pods are admitted, and their
programs wait for the controller or are refused by it. A list that changed whenever the controller was away would have
every kubelet fail new pods, and after a restart the running ones too. So the last one stays, over restarts as well.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orion_client.pool_client import PoolError
from orion_k8s.device_plugin.devices import Gpu, Known, Seen, listed, seen
from orion_k8s.device_plugin.plugin import Table

log = logging.getLogger("orion.plugin")

REPEAT_S = 60.0  # that the controller is still away is told so often
RETRY_S = 2.0  # while it is away
_STATE_BYTES_MAX = 16 << 20


class Api(Protocol):
    """The part of PoolClient that this needs."""

    def items(self, kind: str, most: int = ..., **query: Any) -> list[dict[str, Any]]: ...


class PoolList:
    """Fills the table. Belongs to one thread."""

    def __init__(self, api: Callable[[], Api], table: Table, node: str, *, devices_most: int,
                 state_file: Path, wall_clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        """`api`: the controller, with the token as it is now."""
        self._api = api
        self._table = table
        self._node = node
        self._most = devices_most
        self._state_file = state_file
        self._now = wall_clock
        self._known: Known = {}
        self._away_since_s: float | None = None
        self._told_s = 0.0
        self._was_cut = False

    def start(self) -> None:
        """What was known when the plugin last ran, until the controller says more."""
        try:
            known = _read(self._state_file)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not read: %s", self._state_file, error)
            return
        if known:
            self._known = known
            self._show()
            log.info("%d GPU(s) of the pool are known from before", len(known))

    def look(self) -> bool:
        """Asks once; False: the controller did not answer, and all is as it was."""
        now_s = self._now()
        try:
            gpus = self._ask()
        except PoolError as error:
            if self._away_since_s is None:
                self._away_since_s = now_s
            if now_s - self._told_s >= REPEAT_S:
                self._told_s = now_s
                stays = (
                    "the list of devices stays as it was" if self._table.is_known else "nothing is known of the pool"
                )
                log.warning("no list of vGPUs since %.0f s (%s%s): %s", now_s - self._away_since_s, error,
                            f"; {error.hint}" if error.hint else "", stays)  # fmt: skip
            return False
        if self._away_since_s is not None:
            log.info("the controller answers again, after %.0f s", now_s - self._away_since_s)
            self._away_since_s, self._told_s = None, 0.0
        self._known = seen(self._known, gpus, now_s)
        if self._show():
            self._store()
        return True

    def run(self, stop: threading.Event, every_s: float) -> None:
        """Until `stop`."""
        while not stop.is_set():
            answered = self.look()
            pause_s = every_s if answered else min(RETRY_S, every_s)
            stop.wait(pause_s * random.uniform(0.8, 1.2))  # all nodes' plugins ask the same controller

    def _ask(self) -> list[Gpu]:
        api = self._api()
        # Every GPU has at least one vGPU: more of them are not listed.
        rows = api.items("gpus", self._most)
        if len(rows) == self._most:
            rows += api.items("gpus", self._most, node=self._node)
        draining = {str(row.get("name")) for row in api.items("nodes", state="draining")}
        try:
            return [
                Gpu(str(row["node"]), int(row["ordinal"]), int(row["max_vgpus"]),
                    not row.get("health") and str(row["node"]) not in draining)
                for row in rows
            ]  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise PoolError(f"the controller's list of GPUs cannot be read: {error!r}",
                            "install the same release on both sides") from None  # fmt: skip

    def _show(self) -> bool:
        devices, count = listed(self._known, self._node, self._most)
        is_cut = count > len(devices)
        if is_cut and not self._was_cut:
            log.info("the pool has %d vGPUs; this node lists %d of them (--max-devices)", count, len(devices))
        self._was_cut = is_cut
        is_new = self._table.put(devices, frozenset(server for server, _ in self._known))
        if is_new:
            healthy = sum(device.is_healthy for device in devices)
            log.info("%d vGPU(s) are listed, %d of them healthy", len(devices), healthy)
        return is_new

    def _store(self) -> None:
        rows = [[g.server, g.ordinal, g.vgpus, g.is_well, s.at_s] for s in self._known.values() for g in (s.gpu,)]
        partial = self._state_file.with_name(self._state_file.name + ".part")
        try:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"version": 1, "gpus": rows}))
            os.replace(partial, self._state_file)
        except OSError as error:
            log.warning("%s is not written: %s", self._state_file, error)


def _read(path: Path) -> Known:
    with path.open("rb") as file:
        data = file.read(_STATE_BYTES_MAX + 1)
    if len(data) > _STATE_BYTES_MAX:
        raise ValueError("it is too large")
    state = json.loads(data)
    if state["version"] != 1:
        raise ValueError("it is another version's")
    return {
        (str(server), int(ordinal)): Seen(Gpu(str(server), int(ordinal), int(vgpus), bool(is_well)), float(at_s))
        for server, ordinal, vgpus, is_well, at_s in state["gpus"]
    }
