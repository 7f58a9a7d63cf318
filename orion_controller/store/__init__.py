"""What the controller keeps in its database: SQLite by default, PostgreSQL for several replicas.

`Store` is the pool's state and its events, `Accounts` who may see and change it. The rest of the controller uses these
two; leader.py and cli.py also the modules below.
"""

from orion_controller.store.accounts import AccountError, Accounts, Identity
from orion_controller.store.engine import StoreError
from orion_controller.store.store import CURVE_SECRET, Store, Stored
from orion_controller.store.writer import NotLeading

__all__ = ["CURVE_SECRET", "AccountError", "Accounts", "Identity", "NotLeading", "Store", "StoreError", "Stored"]
