"""orion-smi, and the nvidia-smi of client environments.

`nvidia.py` answers as nvidia-smi does, of what this container has (`gather.py`): `box.py` is its table, `query.py` its
fields, `report.py` its -q. `cli.py` and `tables.py` are orion-smi's own: servers, the pool, vGPUs, clients.
"""

from __future__ import annotations


def main() -> None:
    """Entry of orion-smi: with options of nvidia-smi it answers as that does."""
    import sys

    from orion_client.smi import nvidia

    if nvidia.is_meant(sys.argv[1:]):
        nvidia.main()
    from orion_client.smi.cli import app

    app(prog_name="orion-smi")
