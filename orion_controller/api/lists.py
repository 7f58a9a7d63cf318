"""Pages of lists: filtered, sorted and cut before anything is encoded.

A pool may have 64,000 vGPUs, and the controller's thread also gives them out: what walks over all of them pauses every
few milliseconds, and what took long to make is kept for ten times as long as it took (2 s at most), however many ask.
A small pool's lists are always made anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints
from typing import runtime_checkable as checkable

import msgspec
from msgspec import Meta

from orion_controller.api import models, pod_models
from orion_controller.backend import Backend

PAGE_MAX = 1000
OFFSET_MAX = 10_000_000
EVENTS_MOST = 10_000
SLICE_S = 0.005  # how long the event loop may be kept
_QUICK_S = 0.02
_KEPT_FOR = 10.0
_KEPT_MOST_S = 2.0
T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], kw_only=True):
    """A part of a list. `total`: how many there are with the same filters."""

    items: list[T]
    total: int


@dataclass(frozen=True, eq=False)
class Kind:
    """A list of the API. `filters`: by which parameters it can be narrowed, and what they compare with."""

    name: str
    model: type[msgspec.Struct]
    filters: Mapping[str, tuple[str, ...]]
    meanings: Mapping[str, str] = field(default_factory=dict)


_NODE = "Only on this node."
_GROUP = "Only of this group: its id or its name."
_EVENT_FILTERS = {"state": ("level",), "level": ("level",)}
NODES = Kind("nodes", models.Node, {"node": ("name",), "state": ("state",)})
GPUS = Kind("gpus", models.Gpu, {"node": ("node",)})
VGPUS = Kind("vgpus", models.Vgpu, {"node": ("node",), "group": ("group",)})
GROUPS = Kind("groups", models.Group, {"node": ("nodes",), "group": ("id", "group"), "state": ("state",)})
PODS = Kind("pods", pod_models.Pod, {"node": ("nodes",), "state": ("state",)})
SESSIONS = Kind("sessions", models.Session, {"node": ("node",), "group": ("group", "group_name")})
QUEUE = Kind("queue", models.Waiting, {"group": ("group",)}, {"group": "Only of this name of a group."})
LIMITS = Kind("limits", models.Limits, {"group": ("group",)}, {"group": "Only of this name of a group."})
EVENTS = Kind("events", models.Event, _EVENT_FILTERS, {"state": "The same as level."})
AUDIT = Kind("audit", models.Event, _EVENT_FILTERS, {"state": "The same as level."})
KINDS = (NODES, GPUS, VGPUS, GROUPS, PODS, SESSIONS, QUEUE, LIMITS, EVENTS, AUDIT)
_MEANINGS = {"node": _NODE, "group": _GROUP, "state": "Only in this state.", "level": "Only of this level."}


@cache
def query_model(kind: Kind) -> type[msgspec.Struct]:
    """The parameters of a list."""
    hints = get_type_hints(kind.model)
    choices = ("", *hints, *(f"-{name}" for name in hints))
    fields: list[Any] = [
        ("limit", Annotated[int, Meta(ge=1, le=PAGE_MAX, description="So many at most.")], 100),
        ("offset", Annotated[int, Meta(ge=0, le=OFFSET_MAX, description="So many are left out first.")], 0),
        ("sort", Annotated[Literal[choices], Meta(description="By this field; -FIELD: the largest first.")], ""),
        ("q", Annotated[str, Meta(max_length=200, description="Only what has this text in it; case is ignored.")], ""),
    ]
    for name, (compared, *_) in kind.filters.items():
        meaning = kind.meanings.get(name, _MEANINGS[name])
        literal = get_args(hints[compared]) if get_origin(hints[compared]) is Literal else None
        plain: Any = Literal[("", *literal)] if literal else str
        meta = Meta(description=meaning) if literal else Meta(max_length=300, description=meaning)
        fields.append((name, Annotated[plain, meta], ""))
    if kind.model is models.Event:
        meaning = "Only what has a larger id: for following."
        fields.append(("after", Annotated[int, Meta(ge=0, le=(1 << 53) - 1, description=meaning)], 0))
    return msgspec.defstruct(f"{kind.name.capitalize()}Query", fields, kw_only=True, forbid_unknown_fields=True,
                             module=__name__)  # fmt: skip


@cache
def _text_of(model: type[msgspec.Struct]) -> Callable[[Any], str]:
    """What `q` is looked for in: texts, and a process's number."""
    hints = get_type_hints(model)
    texts = [n for n, hint in hints.items() if hint is str or get_origin(hint) is Literal]
    others = [n for n, hint in hints.items() if get_origin(hint) is list or n == "pid"]
    get = attrgetter(*texts) if len(texts) > 1 else (lambda item: (getattr(item, texts[0]),))
    if not others:
        return lambda item: "\n".join(get(item)).lower()
    return lambda item: "\n".join((*get(item), *(str(getattr(item, name)) for name in others))).lower()


@cache
def _has_none(model: type[msgspec.Struct], name: str) -> bool:
    hint = get_type_hints(model, include_extras=False)[name]
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def sort(items: list[Any], model: type[msgspec.Struct], by: str) -> None:
    """By a field; equal ones stay in their order, unknown values count as the smallest."""
    name = by.lstrip("-")
    key: Callable[[Any], Any] = attrgetter(name)
    if _has_none(model, name):
        plain = key

        def key(item: Any) -> Any:
            value = plain(item)
            return (value is not None, 0 if value is None else value)

    items.sort(key=key, reverse=by.startswith("-"))


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """The same; others have their turn meanwhile."""
    began_s = time.perf_counter()
    for number, item in enumerate(items):
        if not number & 63 and time.perf_counter() - began_s > SLICE_S:
            await asyncio.sleep(0)
            began_s = time.perf_counter()
        yield item


async def _narrowed(items: Sequence[Any], keep: Callable[[Any], bool]) -> list[Any]:
    if len(items) < 1000:
        return [item for item in items if keep(item)]
    found: list[Any] = []
    for start in range(0, len(items), 1000):
        found += [item for item in items[start : start + 1000] if keep(item)]
        await asyncio.sleep(0)
    return found


@checkable
class OneByOne(Protocol):
    """What a backend of a large pool may have besides: with it no long list is made in one go."""

    def group_ids(self) -> list[str]: ...
    def group(self, group_id: str) -> models.Group | None: ...


class _Kept:
    """A list that took long to make."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.items: list[Any] | None = None
        self.until_s = 0.0


class _Log:
    """The newest events. Only those that came since the last look are read."""

    def __init__(self, backend: Backend, audit: bool) -> None:
        self._backend, self._audit = backend, audit
        self._events: deque[models.Event] = deque(maxlen=EVENTS_MOST)
        self._lock = asyncio.Lock()

    async def events(self) -> list[models.Event]:
        """Oldest first."""
        async with self._lock:
            last = self._events[-1].id if self._events else 0
            new = await self._backend.events(last, EVENTS_MOST, self._audit)
            self._events.extend(event for event in new if event.id > last)
            return list(self._events)


class Lists:
    """All lists of the pool. Belongs to the event loop's thread."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._generation = 0
        self._logs = {EVENTS.name: _Log(backend, audit=False), AUDIT.name: _Log(backend, audit=True)}

    def forget(self) -> None:
        """Something was changed: whoever did it wants to see it."""
        self._generation += 1
        for kept in self._kept.values():
            kept.items = None

    async def all(self, kind: Kind) -> list[Any]:
        """The whole list in the order of the pool, up to 2 s old. Not to be changed."""
        kept = self._kept.setdefault(kind.name, _Kept())
        async with kept.lock:
            if kept.items is not None and self._clock() < kept.until_s:
                return kept.items
            generation, began_s = self._generation, self._clock()
            items = await self._make(kind)
            took_s = self._clock() - began_s
            keep = took_s > _QUICK_S and generation == self._generation
            kept.items = items if keep else None
            kept.until_s = self._clock() + min(_KEPT_FOR * took_s, _KEPT_MOST_S)
            return items

    async def _make(self, kind: Kind) -> list[Any]:
        backend = self._backend
        if kind.name in self._logs:
            return list(await self._logs[kind.name].events())
        if kind is VGPUS:
            return [vgpu async for vgpu in self.vgpus()]
        if kind is GROUPS and isinstance(backend, OneByOne):
            return [group async for i in in_slices(backend.group_ids()) if (group := backend.group(i)) is not None]
        if kind is PODS:
            return [pod async for pod in in_slices(backend.pods())]
        read: dict[str, Callable[[], list[Any]]] = {
            NODES.name: backend.nodes, GPUS.name: backend.gpus, GROUPS.name: backend.groups,
            SESSIONS.name: backend.sessions, QUEUE.name: backend.queue, LIMITS.name: backend.limits,
        }  # fmt: skip
        return read[kind.name]()

    async def groups(self) -> AsyncIterator[models.Group]:
        """All of them, up to 2 s old."""
        async for group in in_slices(await self.all(GROUPS)):
            yield group

    async def vgpus(self) -> AsyncIterator[models.Vgpu]:
        """All of them. Asked for at once, 64,000 keep the thread for a third of a second."""
        backend = self._backend
        if not isinstance(backend, OneByOne):
            async for vgpu in in_slices(backend.vgpus()):
                yield vgpu
            return
        async for group_id in in_slices(backend.group_ids()):
            for vgpu in backend.vgpus(group=group_id):
                yield vgpu

    async def group(self, group_id: str) -> models.Group | None:
        """One of them by its id."""
        if isinstance(self._backend, OneByOne):
            return self._backend.group(group_id)
        groups: list[models.Group] = await self.all(GROUPS)
        return next((group for group in groups if group.id == group_id), None)

    async def _of_group(self, wanted: str) -> list[models.Vgpu]:
        found = self._backend.vgpus(group=wanted)
        if not found:
            named = [group.id for group in await self.all(GROUPS) if group.group == wanted]
            found = [vgpu for group_id in named for vgpu in self._backend.vgpus(group=group_id)]
        return found

    async def page(self, kind: Kind, query: Any) -> Page[Any]:
        """What a query of `query_model(kind)` asks for."""
        wanted = {name: value for name in kind.filters if (value := getattr(query, name))}
        if kind is VGPUS and "group" in wanted:
            items: Sequence[Any] = await self._of_group(wanted.pop("group"))
        elif kind is GPUS and "node" in wanted:
            items = self._backend.gpus(wanted.pop("node"))
        else:
            items = await self.all(kind)
        for name, value in wanted.items():
            get = attrgetter(*kind.filters[name], "__class__")  # always a tuple
            items = await _narrowed(items, lambda item, get=get, value=value: _has(get(item), value))  # type: ignore[misc]
        is_log = kind.name in self._logs
        if is_log and query.after:
            items = [event for event in items if event.id > query.after]
        if query.q:
            text_of, q = _text_of(kind.model), query.q.lower()
            items = await _narrowed(items, lambda item: q in text_of(item))
        total = len(items)
        if query.sort:
            ordered = list(items)
            sort(ordered, kind.model, query.sort)
            items = ordered
        elif is_log:
            # The newest ones, oldest first: as one reads a log.
            end = max(0, total - query.offset)
            return Page(items=list(items[max(0, end - query.limit) : end]), total=total)
        return Page(items=list(items[query.offset : query.offset + query.limit]), total=total)


def _has(values: tuple[Any, ...], wanted: str) -> bool:
    return any(value == wanted or (isinstance(value, list) and wanted in value) for value in values[:-1])
