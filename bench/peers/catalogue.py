"""The queues that are compared: what to install, at which version, how it is set, and what its numbers buy."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Peer:
    """A queue, as the comparison knows it."""

    name: str  # on the command line, in results and charts
    packages: tuple[str, ...]  # pinned; the first is the queue itself
    python_min: tuple[int, int] = (3, 11)
    on_node: bool = False
    setting: str  # used for throughput; the best found among those its documentation names
    source: str  # where it is documented
    keeps: str  # what a finished job leaves behind, and what a completion is checked against
    # Answers whether all `{jobs}` jobs have ended and nothing is left, in one cheap look.
    finished: str
    drain_jobs: int  # so many that a run takes seconds
    backlog_max: int  # the largest that its own bulk call loads in about a minute
    cancel: str | None = None  # how a running job is stopped; None where there is no such thing
    latency_samples: int = 300

    @property
    def version(self) -> str:
        """The version of the queue itself."""
        return self.packages[0].replace("==", "@").rpartition("@")[2]


OURS = Peer(
    name="pgnotifyq",
    packages=("pgnotifyq==this",),
    setting="concurrency 500, the garbage collector as `worker` sets it",
    source="README.md",
    keeps="job and every attempt kept; completion fenced by a random execution id",
    finished="select not exists (select from pgnotifyq.jobs where is_claimable) and not exists (select from pgnotifyq.jobs where is_held)",
    drain_jobs=100_000,
    backlog_max=1_000_000,
    cancel="the handler is cancelled",
)

PEERS = (
    Peer(
        name="pgqueuer",
        packages=("pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0"),
        setting="batch_size 500, asyncpg pool of 10, uvloop",
        source="pgqueuer: `PgQueuer.run(batch_size=...)`, `from_asyncpg_pool`",
        keeps="job deleted, short log row kept; completion by job id alone",
        finished="select not exists (select from pgqueuer)",
        drain_jobs=100_000,
        backlog_max=1_000_000,
        cancel="the handler's scope is cancelled",
    ),
    Peer(
        name="procrastinate",
        packages=("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0"),
        setting="concurrency 100, pool of 52, uvloop",
        source="procrastinate: howto/production/concurrency",
        keeps="job and its events kept; completion by job id",
        finished="select not exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
        drain_jobs=2_000,
        backlog_max=100_000,
        cancel="the handler's task is cancelled",
    ),
    Peer(
        name="oban",
        packages=("oban==0.7.0", "uvloop==0.23.0"),
        python_min=(3, 12),
        setting="queue limit 1000, pool of 10, uvloop",
        source="oban: `Oban(queues={...: limit})`, `oban start` runs uvloop",
        keeps="job kept; completion fenced by its time of attempt",
        finished="select not exists (select from oban_jobs where state in ('available', 'executing', 'scheduled', 'retryable'))",
        drain_jobs=20_000,
        backlog_max=100_000,
        cancel="a flag is set; a handler that reads it each ms",
    ),
    Peer(
        name="chancy",
        packages=("chancy==0.26.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0"),
        setting="async executor, concurrency 1000, eager polling, uvloop",
        source="chancy: `Queue(concurrency=..., eager_polling=True)`",
        keeps="job kept; completion fenced by a claim id, written up to 1 s later",
        finished="select not exists (select from chancy_jobs where state in ('pending', 'running', 'retrying'))",
        drain_jobs=20_000,
        backlog_max=100_000,
        cancel="the handler's task is cancelled",
    ),
    Peer(
        name="saq",
        packages=("saq[postgres]==0.26.4", "psycopg[binary]==3.3.9", "uvloop==0.23.0"),
        setting="concurrency 100, pool of 20, uvloop",
        source="SAQ: `Worker(concurrency=...)`, `PostgresQueue(max_size=...)`",
        keeps="job kept for its ttl of 10 minutes; completion by job key",
        finished="select not exists (select from saq_jobs where status in ('new', 'queued', 'active', 'aborting'))",
        drain_jobs=3_000,
        backlog_max=10_000,
        cancel="the handler's task is cancelled, looked for each second",
        latency_samples=150,
    ),
    Peer(
        name="awa",
        packages=("awa-pg==0.6.9", "uvloop==0.23.0"),
        setting="queue storage, 1000 workers, pool of 20, uvloop",
        source="awa-pg: `AsyncClient.start([{max_workers}])`",
        keeps="job and completion receipt kept; completion fenced by its run lease",
        finished=(
            "select (select coalesce(sum(completed_count), 0) from awa.receipt_completion_batches) "
            "+ (select count(*) from awa.done_entries) >= {jobs}"
        ),
        drain_jobs=20_000,
        backlog_max=100_000,
        cancel="a flag is set; a handler that reads it each ms",
    ),
    Peer(
        name="graphile",
        packages=("graphile-worker@0.18.0",),
        on_node=True,
        setting="100 jobs at once, local queue of 2000, completions batched (0 ms)",
        source="worker.graphile.org/docs/performance#batching",
        keeps="job deleted, no history; completion by job id",
        finished="select not exists (select from graphile_worker._private_jobs)",
        drain_jobs=100_000,
        backlog_max=1_000_000,
    ),
    Peer(
        name="pg-boss",
        packages=("pg-boss@12.38.0",),
        on_node=True,
        setting="1000 jobs to one call of the handler, 4 at once, burst fetches, NOTIFY",
        source="pgboss.io/api/workers",
        keeps="job kept; a batch is completed as one, by job id while it is active",
        finished="select not exists (select from pgboss.job where name = 'noop' and state < 'completed')",
        drain_jobs=100_000,
        backlog_max=1_000_000,
    ),
)

# Brought along by npm, since these two want a newer Node than many systems have.
NODE_PACKAGE = "node@24.21.0"
