"""The tables, as the newest migration leaves them (a test compares the two). Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
LEADER_ROW = 1
# SQLite numbers rows by itself only where the column's type is INTEGER.
_Counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# `body` is backend.AllocationRecord as JSON text (not JSONB: a NUL in a program's name is legal JSON and no JSONB);
# `version` is the format of the body, so that a later program knows what it reads.
allocations = sa.Table(
    "allocations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
group_limits = sa.Table(
    "group_limits",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # the group's name, or "*"
    sa.Column("body", sa.Text, nullable=False),  # models.LimitsBody as JSON
)
drained_servers = sa.Table(
    "drained_servers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", _Counter, primary_key=True, autoincrement=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("username", sa.Text, nullable=False),  # empty: nobody did it, it happened
    sa.Index("events_by_user", "username", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, or who asks for "later than" would miss some
)
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
# One row. `term` grows with each change of hands, `version` with each renewal. `guarded`: the holder also has the lock
# of the SQLite file's side file, so that who gets that lock knows the holder to be dead.
leader = sa.Table(
    "leader",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("instance", sa.Text, nullable=False),  # of one start of a replica; empty: nobody leads
    sa.Column("replica", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("guarded", sa.Boolean, nullable=False),
)
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # the user's name
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),  # passwords.py's form
    sa.Column("created_s", sa.Double, nullable=False),
)
# Sessions and tokens are kept as the SHA-256 of what their holder shows.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.LargeBinary, primary_key=True),
    sa.Column("username", sa.Text, sa.ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double, nullable=False),
    sa.Column("used_s", sa.Double, nullable=False),
)
api_tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("id", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double, nullable=True),  # null: until it is revoked
    sa.Column("used_s", sa.Double, nullable=True),
)
