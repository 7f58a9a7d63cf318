"""Operations of the ring.

One entry for each operation: its number (stable, never reused), fixed fields, what its tail is, and flags that the
engine's admission and parking are generated from. Field types: u16, u32, u64, i32, f32. A field named `*_off` is an
offset into the host arena; `device_*` is a device address that the worker checks against its own map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = {"u16": 2, "i32": 4, "u32": 4, "f32": 4, "u64": 8}

FLAGS = {
    "reply": "the client waits for the reply slot; without it the op is one-way and must have no outputs",
    "express": "travels in the express ring and never waits behind throttled or bulk work",
    "drains": "would block inside the driver while kernels run: parked until its context is idle",
    "work": "GPU work: counted against queue depth, ordered on its stream",
    "stream": "ordered on header.stream without being GPU work",
    "bulk_in": "reads host arena bytes that travel ahead of it",
    "bulk_out": "writes host arena bytes that must be delivered before a later completion word",
    "gpu_time": "takes the GPU's time: admitted by the ratio (copies between host and device have their own engines)",
    "charges": "may take memory: charged to the quota",
}


@dataclass(frozen=True)
class Op:
    """One operation: `code` is its stable number; `fields` are (name, type); `tail` says what follows them."""

    name: str
    code: int
    fields: tuple[tuple[str, str], ...]
    flags: frozenset[str]
    doc: str
    tail: str = ""
    reply: str = ""
    sizes: dict[str, int] = field(default_factory=dict, compare=False)


OPS: list[Op] = []


def op(code: int, name: str, fields: str, flags: str, doc: str, tail: str = "", reply: str = "") -> None:
    pairs = []
    for item in fields.split():
        field_name, kind = item.split(":")
        if kind not in SIZES:
            raise ValueError(f"{name}.{field_name}: unknown type {kind}")
        pairs.append((field_name, kind))
    flag_set = frozenset(flags.split())
    unknown = flag_set - FLAGS.keys()
    if unknown:
        raise ValueError(f"{name}: unknown flags {sorted(unknown)}")
    if reply and "reply" not in flag_set:
        raise ValueError(f"{name}: an operation with outputs must be a reply")
    OPS.append(Op(name, code, tuple(pairs), flag_set, doc, tail, reply))
