"""The client's commands: orion-run, orion-smi and orion-check. The client library itself is C (shim/)."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("orion-vgpu")
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.1.0.dev0"
