"""The pool: which GPU a vGPU is a slice of."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "orion-vgpu"

try:
    __version__ = metadata.version(DISTRIBUTION)
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.1.0.dev0"
