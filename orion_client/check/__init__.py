"""orion-check: what is wrong with a set-up and how to mend it.

`catalogue.py` lists every trouble that can be found, with its remedy: docs/troubleshooting.md is made from it, and a
finding that is not in it cannot be reported. `host.py` looks at the machine, `client.py`, `server.py` and
`controller.py` at what their names say.
"""

from __future__ import annotations


def main() -> None:
    """Entry of the installed command."""
    from orion_client.check.cli import app

    app(prog_name="orion-check")
