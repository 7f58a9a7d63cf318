"""Labels the controller's pod that leads, so that the Service leads to it alone (docs/decisions/0023).

Runs beside each replica. A follower sends the API's changes to its leader's address; that is a pod's, which no
certificate names and no browser outside the cluster reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import ssl
import sys

import aiohttp
import msgspec

from orion_controller.kube_api import KubeApi, KubeConfigError, KubeError, find_access, path_of

log = logging.getLogger("orion.leader-label")
LABEL = "orion/role"
LOOK_S = 1.0
_ANSWER_S = 3.0


async def leads(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the replica says so; one that does not answer does not lead."""
    try:
        async with session.get(f"{url}/readyz") as response:
            told = msgspec.json.decode(await response.content.read(4096))
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
        return False
    return isinstance(told, dict) and told.get("role") == "leader"


async def keep(api: KubeApi, url: str, namespace: str, pod: str, look_s: float = LOOK_S) -> None:
    """For ever: the pod has the label while its replica leads, and only then."""
    # Loopback, the same pod: there is nobody else whose certificate it could be.
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    said: bool | None = None  # None: not known, as when this process is a new one
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls)) as session:
        while True:
            does = await leads(session, url)
            if does != said:
                try:
                    change = {"metadata": {"labels": {LABEL: "leader" if does else None}}}
                    await api.patch(path_of("pods", namespace, pod), change)
                    said = does
                    log.info("this replica %s", "leads" if does else "does not lead")
                except KubeError as error:
                    log.warning("the pod is not labelled: %s", error)
            await asyncio.sleep(look_s)


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with KubeApi(find_access(options.kubeconfig), user_agent="orion-leader-label") as api:
        await keep(api, options.url, options.namespace, options.pod)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--pod", required=True)
    parser.add_argument("--kubeconfig", default="")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        asyncio.run(_run(options))
    except asyncio.CancelledError:
        return 0
    except KubeConfigError as error:
        print(f"orion: the leader's pod is not labelled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
