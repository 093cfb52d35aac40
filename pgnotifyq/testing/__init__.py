"""For the tests of programs that use the queue. docs/testing.md is the guide.

- `assert_enqueued`, `refute_enqueued`: what is enqueued.
- `drain`: run what is due; also within the test's own open transaction.
- `at`: the queue's clock, stopped at a time.
- `run_job`: one handler, without a database.

pytest's fixture `pgnotifyq_db` gives a fresh database, and the same verbs on it.
"""

from pgnotifyq.testing.alone import NoDatabaseInTest, Ran, run_job, run_job_blocking
from pgnotifyq.testing.clocks import at
from pgnotifyq.testing.database import Database, Databases
from pgnotifyq.testing.draining import Drained, JobFailed, drain, work_until_idle
from pgnotifyq.testing.enqueued import Jobs, assert_enqueued, refute_enqueued
from pgnotifyq.testing.within import Ending

__all__ = [
    "Database",
    "Databases",
    "Drained",
    "Ending",
    "JobFailed",
    "Jobs",
    "NoDatabaseInTest",
    "Ran",
    "assert_enqueued",
    "at",
    "drain",
    "refute_enqueued",
    "run_job",
    "run_job_blocking",
    "work_until_idle",
]
