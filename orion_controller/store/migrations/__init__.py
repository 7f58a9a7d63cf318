"""The schema's history, oldest first in versions/. Alembic runs them; see ../schema.py."""
