"""Puts the pool's public key into a ConfigMap, where servers, device plugins and the scheduler wait for it.

Runs in the controller's pod before the controller: the key pair is made with the database, whoever opens it first.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from orion_controller.config import ConfigError, load
from orion_controller.kube_api import KubeApi, KubeConfigError, KubeError, find_access, path_of
from orion_controller.store import CURVE_SECRET, Store, StoreError
from wire import curve

KEY = "controller-key"
_TRIES = 10
_PAUSE_S = 3.0


def public_key(data_dir: str | None, database: str | None) -> str:
    """Of the pool's database, made if there is none. StoreError, ConfigError; OSError: the folder cannot be made."""
    settings = load({"data_dir": data_dir, "database": database})
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store.open(settings.database_url)
    try:
        return curve.pair_of_bytes(store.secret(CURVE_SECRET)).public
    finally:
        asyncio.run(store.close())


async def publish(api: KubeApi, namespace: str, name: str, key: str, *, tries: int = _TRIES,
                  pause_s: float = _PAUSE_S) -> None:  # fmt: skip
    """KubeError: the API server refused it, or was away each time."""
    for attempt in range(1, tries + 1):
        try:
            await api.patch(path_of("configmaps", namespace, name), {"data": {KEY: key}})
            return
        except KubeError as error:
            # Away, or busy: those pass. What is refused stays refused, and the kubelet tries again anyway.
            if attempt == tries or (error.status and error.status not in (429, 500, 502, 503, 504)):
                raise
            await asyncio.sleep(pause_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-map", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--database")
    parser.add_argument("--kubeconfig", default="")
    options = parser.parse_args()

    async def work(key: str) -> None:
        async with KubeApi(find_access(options.kubeconfig), user_agent="orion-publish-key") as api:
            await publish(api, options.namespace, options.config_map, key)

    try:
        key = public_key(options.data_dir, options.database)
        asyncio.run(work(key))
    except (ConfigError, KubeConfigError, KubeError, OSError, StoreError) as error:
        print(f"orion: the pool's public key is not published: {error}", file=sys.stderr)
        return 1
    print(f"the pool's public key is {key}, in the ConfigMap {options.namespace}/{options.config_map}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
