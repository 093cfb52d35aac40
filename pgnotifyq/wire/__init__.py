"""PostgreSQL spoken natively by trio. Knows what an Ask looks like, and nothing of jobs."""

from __future__ import annotations

from pgnotifyq.wire.names import check_psycopg

# Before any module of this floor imports a name that may be missing.
check_psycopg()
