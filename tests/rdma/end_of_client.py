"""What a server's log says of a session over UCX whose client ended in the middle of its copies."""

from __future__ import annotations

import re

# UCX finds a request that is not done; or what it read before a send failed acknowledges one that it has given up.
_ABORTS_OF_UCX_1_13 = re.compile(r"Assertion `[^']*(proto_reqs|PUT_TX_WAITING_ACK)[^']*' failed")


def is_end_of_client(ended: str, log: str) -> bool:
    """ended: the session's line. It ends as its client's end or, with UCX 1.13, together with its worker."""
    if "ended: the client is gone: the client closed a lane" in ended:
        return True
    aborted = re.search(r"ended: worker (\d+) died \(killed by signal 6\)", ended)
    if aborted is None:
        return False
    # UCX's line starts with [host:pid:tid].
    of_worker = (line for line in log.splitlines() if re.match(rf"\[\S+:{aborted[1]} *:", line))
    return any(_ABORTS_OF_UCX_1_13.search(line) for line in of_worker)
