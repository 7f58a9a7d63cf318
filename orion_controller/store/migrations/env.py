"""What alembic runs: migrations on the connection (and in the transaction) that schema.py hands over."""

from __future__ import annotations

from alembic import context

from orion_controller.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
