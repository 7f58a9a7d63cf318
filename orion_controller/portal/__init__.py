"""The web portal: static files that the API serves at "/", built from src/ by `npm run build` and checked in as dist/.

It uses nothing but /api/v1, and shows and hides by role what the API allows anyway.
"""

from __future__ import annotations

from pathlib import Path

DIST = Path(__file__).parent / "dist"
