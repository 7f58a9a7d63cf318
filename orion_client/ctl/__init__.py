"""orionctl: looks at the pool, or at one server, and changes it while programs run.

`app.py` is the command line's top; `look.py`, `change.py`, `account.py` and `top.py` hold the commands of a pool,
`direct.py` what is asked of one server without a controller, `show.py` what people and programs see of it,
`kinds.py` what there is to see, `names.py` finds things by the names that people type.
"""

from __future__ import annotations


def main() -> None:
    """Entry of the installed command."""
    from orion_client.ctl.app import app

    app(prog_name="orionctl")
