"""Operations of the ring, by area: importing an area registers its operations. See `definition`."""

from wire.spec.ops import (  # noqa: F401  (registration)
    array,
    capture,
    context,
    copy,
    device,
    event,
    host_memory,
    image,
    ipc,
    launch,
    memory,
    module,
    session,
    stream,
    virtual_memory,
)
from wire.spec.ops.definition import FLAGS, OPS, SIZES, Op

OPS.sort(key=lambda op: op.code)

__all__ = ["FLAGS", "OPS", "SIZES", "Op"]
