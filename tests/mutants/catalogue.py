"""The mutants, by name. Each says what it breaks, where, and which tests stand against it.

`old` occurs exactly once in its file, which tests/test_mutants.py checks, so that the list cannot rot silently. It is kept
short: what is around it may change. Where a change needs more than a word, `old` is a pattern.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Mutant:
    """One way to be wrong."""

    name: str  # what is wrong with it
    file: str
    old: str | re.Pattern[str]
    new: str  # with a pattern's groups as \g<name>
    tests: tuple[str, ...]  # under tests/; all pass without the mutant, and one at the least fails with it

    def count(self, text: str) -> int:
        """Return how often `old` occurs in a text."""
        return text.count(self.old) if isinstance(self.old, str) else len(self.old.findall(text))

    def apply(self, text: str) -> str:
        """Return the text with the change made."""
        return text.replace(self.old, self.new) if isinstance(self.old, str) else self.old.sub(self.new, text)


def _pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern in which a blank stands for any blanks."""
    return re.compile(text.replace(" ", r"\s+"), re.DOTALL)


SQL = "sql/functions/"
RUNTIME = "pgnotifyq/runtime/"
FENCE = r" and j\.current_execution_id = e\.execution_id"

MUTANTS = (
    # What is paused.
    Mutant(
        "pause: a look does not ask",
        SQL + "claim/claim.sql",
        "if pg_relation_size('{schema}.pauses') > 0 then",
        "if false then",
        ("ledger/test_may_start.py::test_job_that_is_paused",),
    ),
    Mutant(
        "pause: a wake-up that names a job does not ask",
        SQL + "claim/claim_named.sql",
        "if pg_relation_size('{schema}.pauses') > 0 then",
        "if false then",
        ("ledger/test_may_start.py::test_job_that_is_paused",),
    ),
    Mutant(
        "pause: the insert does not ask",
        SQL + "enqueue/enqueue_claimed.sql",
        "if is_claimed and pg_relation_size('{schema}.pauses') > 0 then",
        "if false then",
        ("ledger/test_may_start.py::test_statement_that_inserts_what_is_paused",),
    ),
    Mutant(
        "pause: it wakes for what is paused",
        SQL + "worker/wake.sql",
        "is_paused := pg_relation_size('{schema}.pauses') > 0;",
        "is_paused := false;",
        ("runtime/test_pausing.py::test_nobody_is_woken_for_what_is_paused",),
    ),
    Mutant(
        "resume: it wakes nobody",
        SQL + "claim/pause.sql",
        "if was_paused then",
        "if false then",
        ("runtime/test_pausing.py::test_pause_and_resume",),
    ),
    Mutant(
        "drain: a claim under way is not waited for",
        SQL + "claim/admit.sql",
        "perform pg_advisory_xact_lock({schema}.pauses_lock());",
        "null;",
        ("runtime/test_pausing.py::test_claim_that_did_not_see_the_pause",),
    ),
    Mutant(
        "drain: what is given back is not announced",
        SQL + "end/give_back.sql",
        "if awaited_ids is not null then",
        "if false then",
        ("runtime/test_pausing.py::test_drain",),
    ),
    # What follows an end, and what goes along.
    Mutant(
        "hooks: none of a completion",
        SQL + "end/complete.sql",
        "perform {schema}.fire_hooks(array(select e.job_id from unnest(ended) as e));",
        "null;",
        ("runtime/test_hooks.py::test_with_the_settlement_or_not_at_all",),
    ),
    Mutant(
        "hooks: none of a pending job's cancel",
        "sql/migrations/0012_headers.sql",
        "perform {schema}.fire_hook(new);",
        "null;",
        ("runtime/test_hooks.py::test_a_cancel_by_sql_while_no_worker_lives",),
    ),
    Mutant(
        "hooks: none of a death",
        SQL + "end/move_to_letters.sql",
        "perform {schema}.fire_hooks_of_dead(letter_ids);",
        "null;",
        ("runtime/test_hooks.py::test_a_death_that_a_reclaimer_makes",),
    ),
    Mutant(
        "hooks: two of a cancel while the job runs",
        "sql/migrations/0012_headers.sql",
        "if old.status = 'pending' and pg_relation_size",
        "if pg_relation_size",
        ("runtime/test_hooks.py::test_a_cancel_while_it_runs",),
    ),
    Mutant(
        "headers: lost by a requeue",
        SQL + "end/requeue.sql",
        "l.enqueued_by, l.headers",
        "l.enqueued_by, null",
        ("runtime/test_headers.py::test_every_attempt_has_them",),
    ),
    # Handlers in processes, and worker processes under a parent.
    Mutant(
        "processes: a crash is tried in another process",
        RUNTIME + "processes.py",
        "        if not has_begun:\n            raise _NeverBegan",
        "        if True:\n            raise _NeverBegan",
        ("runtime/test_process_handlers.py::test_crash_is_a_failed_attempt_of_that_job",),
    ),
    Mutant(
        "processes: what a handler has started lives on",
        RUNTIME + "processes.py",
        "os.killpg(self.popen.pid, signal.SIGKILL)",
        "os.kill(self.popen.pid, signal.SIGKILL)",
        ("runtime/test_process_handlers.py::test_killed_by_what_interrupts_it",),
    ),
    Mutant(
        "processes: as many as there are jobs",
        RUNTIME + "processes.py",
        "trio.Semaphore(count or cores())",
        "trio.Semaphore(1000)",
        ("runtime/test_process_handlers.py::test_time_to_wait_for_a_process_is_not_the_jobs",),
    ),
    Mutant(
        "processes: time counts while a job waits for one",
        RUNTIME + "executor.py",
        "if not in_process:  # else when one is free",
        "if True:  # else when one is free",
        ("runtime/test_process_handlers.py::test_time_to_wait_for_a_process_is_not_the_jobs",),
    ),
    Mutant(
        "processes: never replaced",
        RUNTIME + "processes.py",
        "child.jobs == self._jobs_max",
        "child.jobs == -1",
        ("runtime/test_process_handlers.py::test_recycled_after_so_many_jobs",),
    ),
    Mutant(
        "processes: memory without bounds",
        RUNTIME + "processes_child.py",
        "with _limited(self.hello.memory_bytes_max):",
        "with _limited(None):",
        ("runtime/test_process_handlers.py::test_memory",),
    ),
    Mutant(
        "processes: a cooperative handler is killed at once",
        RUNTIME + "processes.py",
        "if not (handler.cooperative and handler.takes_context):",
        "if True:",
        ("runtime/test_process_handlers.py::test_cooperative_handler_is_told",),
    ),
    Mutant(
        "processes: a completion in its own transaction is forgotten",
        RUNTIME + "processes.py",
        "running.is_settled = True",
        "running.is_settled = False",
        ("runtime/test_process_handlers.py::test_death_after_the_job_was_completed_in_its_own_transaction",),
    ),
    Mutant(
        "processes: the kernel is not asked to end them",
        RUNTIME + "processes_child.py",
        "prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)",
        "prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)",
        ("runtime/test_process_handlers.py::test_ends_with_its_worker",),
    ),
    Mutant(
        "processes: a fork speaks for the job",
        RUNTIME + "processes_child.py",
        "self._is_left = True",
        "self._is_left = False",
        ("runtime/test_process_handlers.py::test_fork_of_a_handler",),
    ),
    Mutant(
        "processes: middleware sees no error",
        RUNTIME + "executor.py",
        "raise told  # noqa",
        "pass  # noqa",
        ("runtime/test_process_handlers.py::test_middleware_is_in_the_worker",),
    ),
    Mutant(
        "processes: a traceback stays behind",
        RUNTIME + "logs.py",
        "elif record.exc_text:",
        "elif False:",
        ("cli/test_handler_processes.py::test_all_that_a_process_logs_is_json",),
    ),
    Mutant(
        "processes: a thread left behind speaks for the next job",
        RUNTIME + "processes_child.py",
        "is_astray=self._child.is_astray(record.thread)",
        "is_astray=False",
        ("cli/test_handler_processes.py::test_thread_that_a_job_has_left_behind",),
    ),
    Mutant(
        "processes: a span without its error",
        "pgnotifyq/otel.py",
        "_tell_as_text(span, raised)\n        finally",
        "pass\n        finally",
        ("runtime/test_traces.py::test_handler_in_a_process",),
    ),
    Mutant(
        "supervised: a child goes on without its parent",
        "pgnotifyq/cli/processes.py",
        "                ear.be_told(DRAIN)\n",
        "                pass\n",
        ("cli/test_processes.py::test_parent_is_killed",),
    ),
    Mutant(
        "supervised: no pause in a crash loop",
        "pgnotifyq/cli/processes.py",
        "if deaths else 0.0",
        "if deaths < 0 else 0.0",
        ("cli/test_processes.py::test_crash_loop",),
    ),
    Mutant(
        "supervised: more processes than ports",
        "pgnotifyq/cli/worker.py",
        ".nth(processes - 1)",
        ".nth(0)",
        ("cli/test_processes.py::test_more_processes_than_ports",),
    ),
    # The fence.
    Mutant(
        "fence dropped: complete",
        SQL + "end/complete.sql",
        _pattern(FENCE + r"(?= returning)"),
        "",
        ("ledger/test_settling.py::test_stale_execution_after_somebody_claimed_again",),
    ),
    Mutant(
        "fence dropped: retry, snooze, release",
        SQL + "end/give_back.sql",
        _pattern(FENCE + r"(?= and e\.kind in)"),
        "",
        ("ledger/test_settling.py::test_stale_execution_after_somebody_claimed_again",),
    ),
    Mutant(
        "fence dropped: cancel",
        SQL + "end/stop.sql",
        _pattern(FENCE + r"(?= returning)"),
        "",
        ("ledger/test_settling.py::test_stale_execution_after_somebody_claimed_again",),
    ),
    Mutant(
        "fence dropped: bury",
        SQL + "end/bury.sql",
        _pattern(FENCE + r"(?= for no key update)"),
        "",
        ("ledger/test_settling.py::test_stale_execution_after_somebody_claimed_again",),
    ),
    Mutant(
        "fence dropped: heartbeat",
        SQL + "lease/heartbeat.sql",
        _pattern(FENCE + r"(?= for no key update)"),
        "",
        ("ledger/test_reclaiming.py::test_beat_of_a_stale_execution",),
    ),
    Mutant(
        "fence dropped: a handler's own transaction",
        SQL + "lease/still_holds.sql",
        " and j.current_execution_id = still_holds.execution_id",
        "",
        ("runtime/test_losing.py::test_execution_without_its_lease_writes_nothing",),
    ),
    Mutant(
        "fence dropped: a commit that the handler says itself",
        "sql/migrations/0010_fences.sql",
        "if held <> 'held' then",
        "if held is null then",
        ("runtime/test_own_transactions.py::test_commit_by_hand_without_the_job",),
    ),
    Mutant(
        "another transaction than the one that was begun commits",
        SQL + "lease/fence.sql",
        "if pg_current_xact_id_if_assigned()::text is distinct from begun_in then",
        "if begun_in is null then",
        ("runtime/test_own_transactions.py::test_ended_by_hand",),
    ),
    Mutant(
        "a session handed on as it was left",
        "pgnotifyq/wire/pool.py",
        "send_query(_DISCARD)",
        'send_query(b"select 1")',
        ("runtime/test_own_transactions.py::test_left_in_the_session",),
    ),
    Mutant(
        "fence dropped: progress",
        SQL + "lease/report_progress.sql",
        " and j.current_execution_id = report_progress.execution_id",
        "",
        ("runtime/test_losing.py::test_execution_without_its_lease_writes_nothing",),
    ),
    # Enqueues that share a statement.
    Mutant(
        "a cancelled caller's job goes again with the others'",
        "pgnotifyq/doors/gathering.py",
        "            if not caller.has_left:\n                caller.batch = None",
        "            if True:\n                caller.batch = None",
        ("doors/test_gathering.py::test_cancelled_while_it_is_under_way",),
    ),
    Mutant(
        "an enqueue whose reply was lost is sent again",
        "pgnotifyq/doors/gathering.py",
        "            if isinstance(error, _SHARED_ERRORS):",
        "            if False:",
        ("doors/test_gathering.py::test_reply_that_is_lost",),
    ),
    # The doors on asyncio and in threads.
    Mutant(
        "a cancel on asyncio that comes too late is lost at the door",
        "pgnotifyq/wire/aio.py",
        "            self._owed = cancelled",
        "            del cancelled",
        ("doors/test_aio.py::test_a_cancel_that_is_too_late",),
    ),
    Mutant(
        "a cancel at the door on asyncio that leaves its statement under way",
        "pgnotifyq/wire/aio.py",
        "            late = await self._interrupt(gen)",
        "            late = None",
        ("doors/test_aio.py::test_an_enqueue_that_is_left_in_mid_statement",),
    ),
    Mutant(
        "a door on asyncio that keeps a cancel to itself",
        "pgnotifyq/doors/aio.py",
        "is_cancelled_again=False",
        "is_cancelled_again=True",
        ("doors/test_aio.py::test_one_of_those_that_share_a_statement_is_cancelled",),
    ),
    Mutant(
        "a blocking door that a child takes over from its parent",
        "pgnotifyq/doors/sync.py",
        "        opened, self._opened = self._opened, None\n        if opened is not None:\n            opened.ends.forget()",
        "        opened = None\n        if opened is not None:\n            opened.ends.forget()",
        ("doors/test_sync.py::test_a_fork", "doors/test_sync.py::test_multiprocessing"),
    ),
    Mutant(
        "a thread at the blocking door that leaves without handing over the lead",
        "pgnotifyq/doors/blocking_ends.py",
        "        if self._is_led:\n            return\n",
        "        if True:\n            return\n",
        ("doors/test_every_client.py::test_the_leader_leaves",),
    ),
    Mutant(
        "a blocking door that lends what the server has ended",
        "pgnotifyq/wire/blocking.py",
        "            if pooling.is_fit(connection):",
        "            if True:",
        ("doors/test_every_client.py::test_idle_sessions_that_are_terminated",),
    ),
    Mutant(
        "a door whose verb means another answer",
        "pgnotifyq/doors/verbs.py",
        "            return CancelOutcome(word)",
        "            return CancelOutcome.CANCELLED",
        ("doors/test_conformance.py::test_every_door_does_the_same",),
    ),
    # Attempts, leases, reclaim.
    Mutant(
        "attempts counted at the end: not of a worker that is killed",
        SQL + "lease/reclaim.sql",
        "else lost.attempts end;",
        "else lost.attempts - 1 end;",
        ("ledger/test_reclaiming.py::test_expired_lease", "ledger/test_reclaiming.py::test_lease_lost_on_the_last_attempt"),
    ),
    Mutant(
        "lease extended without the row lock",
        SQL + "lease/heartbeat.sql",
        "for no key update of j",
        "",
        ("ledger/test_reclaiming.py::test_beat_that_waited_for_a_lock",),
    ),
    Mutant(
        "reclaim without re-check",
        SQL + "lease/reclaim.sql",
        "for update skip locked",
        "",
        (
            "ledger/test_reclaiming.py::test_writes_that_commit_after_the_reclaimer_looked",
            "ledger/test_reclaiming.py::test_two_reclaim_at_once",
        ),
    ),
    Mutant(
        "reclaim waits for who holds the row",
        SQL + "lease/reclaim.sql",
        "for update skip locked",
        "for update",
        (
            "ledger/test_reclaiming.py::test_two_reclaim_at_once",
            "ledger/test_reclaiming.py::test_reclaim_beside_an_uncommitted_write",
        ),
    ),
    Mutant(
        "reclaim takes back what is not dead",
        SQL + "lease/reclaim.sql",
        " and {schema}.has_died(w.worker_id)",
        "",
        ("ledger/test_reclaiming.py::test_worker_that_gives_a_sign_of_life",),
    ),
    Mutant(
        "trust window removed",
        RUNTIME + "worker.py",
        "        services.start_soon(distrust_for_ever, me, trust, executions)\n",
        "",
        ("runtime/test_losing.py::test_handler_is_told_before_anybody_else_may_start",),
    ),
    Mutant(
        "trust for as long as the lease, without a margin",
        RUNTIME + "trust.py",
        "me.lease_seconds - me.config.margin_seconds",
        "me.lease_seconds + 1",
        ("runtime/test_losing.py::test_handler_is_told_before_anybody_else_may_start",),
    ),
    Mutant(
        "an earlier execution of a job goes on beside the new one",
        RUNTIME + "executions.py",
        "if before is not None:",
        "if before is None and before:",
        ("runtime/test_losing.py::test_job_claimed_again_by_the_same_worker",),
    ),
    Mutant(
        "a queue that opens rings for nobody",
        RUNTIME + "executions.py",
        "self._rooms[queue] > 0 and queue in self._left_out",
        "self._rooms[queue] > 0 and queue not in self._rooms",
        ("runtime/test_executions.py",),
    ),
    # Claim.
    Mutant(
        "claim by id in (...)",
        SQL + "claim/claim.sql",
        _pattern(
            r"with due as materialized \( select j\.ctid .*? as weight(?P<select>\n.*?for update skip locked)\s*\)"
            r"(?P<head>.*?current_execution_id = )[^\n]*, started_at = due\.taken_at, lease_expires_at = due\.taken_at(?P<tail> .*?)"
            r"from \( select d\.place_in_table, .*? \) as due where j\.ctid = due\.place_in_table and [^\n]*"
            r"(?P<reply>.*?case when )due\.weight <= payload_bytes_max or "
        ),
        r"\g<head>{schema}.new_id(), started_at = time_now, lease_expires_at = time_now\g<tail>"
        r"where j.id in (select j.id\g<select>)\g<reply>",
        ("ledger/test_claiming.py::test_never_more_than_asked_for_under_another_plan",),
    ),
    Mutant(
        "claims wait for each other",
        SQL + "claim/claim.sql",
        "for update skip locked\n",
        "for update\n",
        ("ledger/test_claiming.py::test_two_claim_at_once",),
    ),
    Mutant(
        "claim before its time",
        SQL + "claim/may_start.sql",
        "select (job).scheduled_at <= time_now\n        and ",
        "select ",
        (
            "ledger/test_claiming.py::test_job_of_the_future_behind_one_that_is_due",
            "ledger/test_may_start.py::test_job_that_may_not_start",
        ),
    ),
    # Cancel.
    Mutant(
        "completion ignoring cancel",
        SQL + "end/complete.sql",
        "case when j.status = 'cancelled' then 'cancelled' else 'completed' end",
        "'completed'",
        ("ledger/test_settling.py::test_cancel_committed_first",),
    ),
    Mutant(
        "retry ignoring cancel",
        SQL + "end/give_back.sql",
        "set status = case when j.status = 'cancelled' then 'cancelled' else 'pending' end",
        "set status = 'pending'",
        ("ledger/test_settling.py::test_cancel_committed_first",),
    ),
    Mutant(
        "cancel of what has ended",
        SQL + "end/cancel.sql",
        " and j.status in ('pending', 'running')",
        "",
        ("ledger/test_transitions.py",),
    ),
    Mutant(
        "no guard of the transitions",
        "sql/migrations/0002_wakeups.sql",
        "when (old.status <> new.status\n",
        "when (false and old.status <> new.status\n",
        (
            "ledger/test_transitions.py::test_every_pair_of_statuses",
            "ledger/test_transitions.py::test_completed_job_is_not_cancelled",
        ),
    ),
    Mutant(
        "waiting for a cancel returns at once",
        RUNTIME + "context.py",
        "        await self._running.interrupted.wait()\n        assert self._running.interrupt is not None\n        return self._running.interrupt\n",
        "        return self._running.interrupt  # type: ignore[return-value]\n",
        ("runtime/test_cancelling.py::test_waiting_for_a_cancel_that_does_not_come",),
    ),
    Mutant(
        "heartbeats bring no news of cancels",
        RUNTIME + "heartbeat.py",
        'if surprise is not None and surprise.became == "cancelled":',
        "if surprise is None and surprises is None:",
        ("runtime/test_cancelling.py::test_cancel_whose_notification_is_lost",),
    ),
    # Waking.
    Mutant(
        "notifications only: no backstop",
        RUNTIME + "claimer.py",
        "    return longest * (",
        "    return math.inf * (",
        ("runtime/test_waking.py::test_job_that_nobody_was_told_of",),
    ),
    Mutant(
        "a named job that was not taken is not looked for",
        RUNTIME + "shortcuts.py",
        "        if found.is_still_there:\n            taker.wakeups.bell.ring()\n",
        "",
        ("runtime/test_waking.py::test_named_job_whose_row_is_locked",),
    ),
    Mutant(
        "a full worker keeps the wake-up that finds it so",
        RUNTIME + "claimer.py",
        "_wait_for_a_slot(claimer, rung=rung)",
        "_wait_for_a_slot(claimer, rung=False)",
        ("runtime/test_waking.py::test_worker_that_is_full_of_a_named_job",),
    ),
    Mutant(
        "sleepers that hear nothing stay on the list",
        SQL + "worker/watch.sql",
        "    perform {schema}.forget_sleepers(watch.worker_id);\n",
        "",
        (
            "ledger/test_wakeups.py::test_sleepers_that_hear_nothing",
            "runtime/test_waking.py::test_wake_up_that_sleepers_swallow_who_hear_nothing",
        ),
    ),
    Mutant(
        "a sleeper is forgotten by its row, though its session lives",
        SQL + "worker/sleep.sql",
        "            else pg_try_advisory_xact_lock_shared(coalesce(w.session_lock, {schema}.session_key(a.worker_id))) end\n",
        "            else w.worker_id is null end\n",
        ("ledger/test_wakeups.py::test_sleepers_that_hear_nothing",),
    ),
    Mutant(
        "a sleeper stays while anybody holds its lock",
        SQL + "worker/sleep.sql",
        "            when w.session_pid is not null\n",
        "            when false and w.session_pid is not null\n",
        ("attacks/test_plain.py::test_lock_of_a_worker_that_is_gone",),
    ),
    Mutant(
        "a token holds in every transaction",
        "sql/migrations/0013_tenants_by_token.sql",
        "        || xid8send(pg_current_xact_id_if_assigned());\n",
        "        || ''::bytea;\n",
        ("runtime/test_tenant_logins.py::test_session_of_the_login",),
    ),
    Mutant(
        "a tenant's login is confined by the setting",
        "sql/migrations/0013_tenants_by_token.sql",
        "    if {schema}.is_sealed(session_user) then\n",
        "    if false then\n",
        ("attacks/test_attacks.py::test_attacks",),
    ),
    Mutant(
        "a producer makes any row",
        "sql/migrations/0013_tenants_by_token.sql",
        "or {schema}.is_as_enqueued(jobs));\n",
        "or true);\n",
        ("attacks/test_attacks.py::test_attacks",),
    ),
    Mutant(
        "who is confined to a tenant sees all",
        "sql/migrations/0013_tenants_by_token.sql",
        "            or org_id = (select {schema}.current_org())$$;\n",
        "            or true$$;\n",
        ("attacks/test_attacks.py::test_attacks",),
    ),
    Mutant(
        "a table is one queue's to protect",
        "sql/migrations/0013_tenants_by_token.sql",
        "    if not has_schema_privilege(current_user, {schema_text}, 'usage') then\n",
        "    if false then\n",
        ("ledger/test_organisations_elsewhere.py::test_two_schemas_of_one_database",),
    ),
    Mutant(
        "a full queue of notifications is a pooler",
        "sql/queries/prove.sql",
        "pg_notification_queue_usage() < 0.9 as had_room",
        "true as had_room",
        ("attacks/test_plain.py::test_full_queue_of_notifications",),
    ),
    Mutant(
        "a producer sees all jobs",
        "sql/migrations/0013_tenants_by_token.sql",
        "            or not has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert'))\n        or enqueued_by",
        "            or true)\n        or enqueued_by",
        ("attacks/test_attacks.py::test_attacks",),
    ),
    Mutant(
        "a job's history is all that had its id",
        SQL + "end/history.sql",
        " and e.org_id = history.org_id\n",
        "\n",
        ("ledger/test_tenants.py::test_id_that_another_tenant_had",),
    ),
    Mutant(
        "a job is claimed by its name whatever its queue",
        SQL + "claim/claim_named.sql",
        " and j.queue_name = any (queue_names)",
        "",
        ("ledger/test_claiming_by_name.py::test_job_that_is_not_for_now_or_not_for_it",),
    ),
    Mutant(
        "asleep without the barrier",
        RUNTIME + "sleep.py",
        " and snapshot_xmin > self.barrier:",
        ":",
        ("runtime/test_waking.py::test_insert_that_did_not_see_the_sleeper", "runtime/test_sleep_model.py"),
    ),
    Mutant(
        "a scan of the queue is not made when the listener is back",
        RUNTIME + "listener.py",
        "        await calls.catch_up()\n",
        "",
        ("runtime/test_faults.py::test_listener_comes_back_to_cancels_it_missed",),
    ),
    # Tenants.
    Mutant(
        "set instead of set local",
        "sql/queries/begin_fence_of_tenant.sql",
        "set_config('pgnotifyq.org_id', $3::text, true)",
        "set_config('pgnotifyq.org_id', $3::text, false)",
        ("runtime/test_own_transactions.py::test_confined_for_one_transaction",),
    ),
    Mutant(
        "a tenant's transaction is not confined",
        "pgnotifyq/ledger/fences.py",
        "if org_id is not None:",
        "if org_id is None and schema is None:",
        ("runtime/test_transactions.py::test_tenant_sees_its_own_rows",),
    ),
    Mutant(
        "row security not forced",
        "sql/migrations/0003_tenants.sql",
        "alter table {schema}.dead_letter_jobs force row level security;\n",
        "",
        ("ledger/test_tenants.py::test_every_table_with_a_tenant_column",),
    ),
    # Endings.
    Mutant(
        "release charges the attempt",
        SQL + "end/give_back.sql",
        "e.kind in ('snooze', 'release')\n                then greatest(j.attempts - 1, 0)",
        "e.kind in ('snooze')\n                then greatest(j.attempts - 1, 0)",
        ("ledger/test_settling.py::test_release_puts_a_job_back_where_it_was",),
    ),
    Mutant(
        "a dead letter's history in reverse",
        SQL + "end/history.sql",
        "order by e.started_at, e.id",
        "order by e.started_at desc, e.id",
        ("ledger/test_dying.py::test_death_after_several_attempts",),
    ),
    Mutant(
        "an unknown type taken for done",
        RUNTIME + "executor.py",
        "return Raised(error=self.registry.explain_unknown(job.job_type), unknown_type=True)",
        "return Returned(job.job_type)",
        ("runtime/test_endings.py::test_handler_that_vanishes_between_claim_and_run",),
    ),
    Mutant(
        "a second handler replaces the first",
        "pgnotifyq/model/registry.py",
        "if first is not None:",
        "if first is None and first:",
        ("model/test_registry.py::test_a_second_handler_of_a_type_is_refused_and_the_first_stays",),
    ),
    Mutant(
        "an annotation that is not understood is taken",
        "pgnotifyq/model/structuring.py",
        "        (converter or default_converter()).get_structure_hook(wanted)\n",
        "        pass\n",
        ("model/test_payload.py::test_an_annotation_that_cannot_be_honoured_is_refused",),
    ),
    Mutant(
        "a text is a list of its letters",
        "pgnotifyq/model/converting.py",
        "if not isinstance(value, kind):",
        "if value is None:",
        ("model/test_payload.py::test_a_value_of_another_kind_is_refused_rather_than_converted",),
    ),
    Mutant(
        "a payload of a later version is run as it is",
        "pgnotifyq/model/payload.py",
        "if said > version:",
        "if said > version + 9:",
        ("model/test_payload_settings.py::test_a_payload_of_a_later_version",),
    ),
    Mutant(
        "a payload of a later version is a dead letter",
        "pgnotifyq/runtime/executor.py",
        "undecodable=True, waited=True",
        "undecodable=True, waited=False",
        ("runtime/test_payloads.py::test_a_later_payload_waits_for_a_newer_worker",),
    ),
    Mutant(
        "a payload that says its version is marked again",
        "pgnotifyq/model/payload.py",
        "isinstance(whole := json.loads(text), dict) and VERSION_KEY in whole",
        "isinstance(whole := json.loads(text), list) and VERSION_KEY in whole",
        ("model/test_payload_settings.py::test_a_payload_that_says_its_version_is_enqueued_as_it_is",),
    ),
    Mutant(
        "two types that are both text make a union",
        "pgnotifyq/model/converting.py",
        "if len(alike) > 1 and not set(alike) <= {int, float}:",
        "if len(alike) > 9 and not set(alike) <= {int, float}:",
        ("model/test_payload.py::test_an_annotation_that_cannot_be_honoured_is_refused",),
    ),
    Mutant(
        "a generator that nobody ran is a result",
        "pgnotifyq/model/registry.py",
        "if isinstance(value, _NOT_RUN):",
        "if isinstance(value, _NOT_RUN) and not value:",
        ("model/test_registry.py::test_a_result_that_has_not_run_is_a_failure",),
    ),
    Mutant(
        "a wish that is raised is an error",
        "pgnotifyq/model/outcome.py",
        "if isinstance(cause, _Wish):",
        "if isinstance(cause, _Wish) and not cause:",
        ("model/test_outcome.py::test_a_wish_raised_is_the_wish_returned",),
    ),
    Mutant(
        "nobody says that a handler's time is over",
        RUNTIME + "deadlines.py",
        "            self._interrupt(running, why)\n",
        "            running.interrupt = why\n",
        ("runtime/test_endings.py::test_deadline_is_told",),
    ),
    Mutant(
        "jitter only adds",
        "pgnotifyq/model/retry.py",
        "1 + self.jitter * (2 * random - 1)",
        "1 + self.jitter * random",
        ("model/test_retry.py::test_jitter_goes_both_ways",),
    ),
    Mutant(
        "heartbeats of half a lease",
        "pgnotifyq/model/config.py",
        "HEARTBEATS_A_LEASE_MIN = 3 ",
        "HEARTBEATS_A_LEASE_MIN = 2 ",
        ("model/test_config.py::test_settings_that_contradict_each_other_are_refused",),
    ),
    # Shutdown, and handlers that misbehave.
    Mutant(
        "one more job starts after the signal",
        RUNTIME + "worker.py",
        "        staff.executions.is_draining = True\n",
        "",
        ("runtime/test_shutdown.py::test_nothing_starts_after_the_signal",),
    ),
    Mutant(
        "a handler's BaseException ends the worker",
        RUNTIME + "slots.py",
        "except BaseException as error:\n            if is_at_end:",
        "except Exception as error:\n            if is_at_end:",
        ("runtime/test_traps.py::test_error_that_is_none_of_the_workers",),
    ),
    Mutant(
        "a cancel does not reach a handler on asyncio",
        RUNTIME + "asyncio_loop.py",
        "thread.call(errand.cancel)",
        "pass",
        ("runtime/test_asyncio_handlers.py::test_stopped_as_by_a_cancel_of_its_task",),
    ),
    Mutant(
        "what a handler on asyncio leaves runs on",
        RUNTIME + "asyncio_loop.py",
        "errand.note(task)",
        "pass",
        ("runtime/test_asyncio_handlers.py::test_task_left_behind",),
    ),
    Mutant(
        "a handler SystemExit ends asyncio loop",
        RUNTIME + "asyncio_loop.py",
        "with suppress(SystemExit, KeyboardInterrupt):",
        "with suppress(KeyError):",
        ("runtime/test_asyncio_handlers.py::test_what_would_end_a_program_is_its_failure",),
    ),
    Mutant(
        "jobs on asyncio share their context variables",
        RUNTIME + "asyncio_loop.py",
        "context=copy_context())",
        "context=trio.lowlevel.current_task().context)",
        ("runtime/test_asyncio_handlers.py::test_context_variables",),
    ),
    Mutant(
        "a loop of asyncio that died is used again",
        RUNTIME + "asyncio_loop.py",
        "if self._is_dead:",
        "if False:",
        ("runtime/test_asyncio_handlers.py::test_loop_that_dies",),
    ),
    Mutant(
        "a CancelledError that nobody asked for is a cancel",
        RUNTIME + "asyncio_loop.py",
        "if self.raise_cancel is not None and (self.main.cancelled() or _is_cancel(self.main.exception())):",
        "if self.main.cancelled():",
        ("runtime/test_asyncio_handlers.py::test_cancelled_error_of_its_own",),
    ),
    Mutant(
        "a sink that raises ends the worker",
        RUNTIME + "telling.py",
        "except BaseException as error:",
        "except StopIteration as error:",
        ("runtime/test_telling.py::test_sinks_that_raise_at_every_event",),
    ),
    Mutant(
        "a forked child keeps the worker's sessions open",
        "pgnotifyq/wire/forks.py",
        "os.dup2(null, fileno, inheritable=False)",
        "os.fstat(fileno)",
        ("cli/test_forks.py::test_child_that_outlives_its_worker",),
    ),
    Mutant(
        "a signal's echo counts as a second one",
        "pgnotifyq/cli/ending.py",
        "if number in self.before and now >= self.last_at + ECHO_SECONDS:",
        "if number in self.before:",
        ("cli/test_ending.py::test_signal_and_its_echo",),
    ),
    Mutant(
        "context variables of one job seen by the next",
        RUNTIME + "slate.py",
        "            and self.is_context_as_new()\n",
        "",
        ("runtime/test_leftovers.py::test_context_variables", "runtime/test_leftovers.py::test_decimal_context_of_the_program"),
    ),
    Mutant(
        "a task in which a scope was left open goes on",
        RUNTIME + "slate.py",
        'return "a cancel scope"',
        "return None",
        ("runtime/test_leftovers.py::test_left_open",),
    ),
    Mutant(
        "a handler that holds the loop is not named while it does",
        RUNTIME + "watchdog.py",
        "        quietly(log_blocked, fields)\n",
        "",
        ("runtime/test_watchdog.py::test_handler_that_holds_the_loop",),
    ),
    Mutant(
        "an enqueue gathers with those of another loop",
        "pgnotifyq/doors/gathering.py",
        "        self._pool.check()  # before this task gathers with those of another loop\n",
        "",
        ("doors/test_client_errors.py::test_another_loop_while_enqueues_gather",),
    ),
    Mutant(
        "asyncpg sends what is not fenced",
        "pgnotifyq/wire/guards.py",
        "        if name in self._SENDS:\n",
        "        if name in ():\n",
        ("runtime/test_orm_transactions.py::test_asyncpg_sends_nothing_after_a_commit_by_hand",),
    ),
    Mutant(
        "a savepoint around an enqueue is not rolled back to",
        "pgnotifyq/wire/plans.py",
        "                for text in undo:\n                    yield Script(text)\n",
        "                yield Script(end)\n",
        ("doors/test_callers.py::test_refused_by_the_database_in_a_savepoint",),
    ),
    Mutant(
        "a handler on asyncio holds up its loop by a blocking session",
        "pgnotifyq/runtime/fenced.py",
        "    elif blocking and not fence.calls_here and isinstance(threading.current_thread(), LoopThread):\n",
        "    elif False:\n",
        ("runtime/test_asyncio_handlers.py::test_what_blocks_is_refused",),
    ),
    Mutant(
        "SQLAlchemy does not know of the transaction of an enqueue",
        "pgnotifyq/wire/callers.py",
        "        connection.begin()\n",
        "        pass\n",
        ("doors/test_callers.py::test_committed",),
    ),
    Mutant(
        "an enqueue is before SQLAlchemy's transaction on asyncpg",
        "pgnotifyq/wire/callers.py",
        '        connection.exec_driver_sql("select 1")\n',
        "        pass\n",
        ("doors/test_callers.py::test_rolled_back",),
    ),
    Mutant(
        "a character that the database lacks aborts the caller",
        "pgnotifyq/wire/callers.py",
        "if savepoint or link.server_encoding not in _LACK_NOTHING else",
        "if savepoint else",
        ("doors/test_callers_kinds.py::test_refused_by_the_database",),
    ),
    Mutant(
        "a batch on a driver of the caller's is not undone as a whole",
        "pgnotifyq/wire/plans.py",
        "    if not verb.is_whole:\n        return await _walk(",
        "    if True:\n        return await _walk(",
        ("doors/test_callers.py::test_without_a_transaction",),
    ),
    Mutant(
        "django: a job runs what is no task",
        "pgnotifyq/django/registry.py",
        "if not isinstance(found, Task) or found.module_path != path:",
        "if found is None:",
        ("django/test_backend.py::test_job_whose_path_leads_to_no_task",),
    ),
    Mutant(
        "django: retry_on says nothing",
        "pgnotifyq/django/running.py",
        "elif is_final or not (retry_on is None or isinstance(error, retry_on)):",
        "elif is_final:",
        ("django/test_backend.py::test_failures_that_are_final",),
    ),
    Mutant(
        "django: an attempt that was given back is counted",
        "pgnotifyq/django/results.py",
        "if each.outcome not in _UNCHARGED and each.attempt <= job.attempts}",
        "if each.attempt}",
        ("django/test_worker.py::test_shutdown_gives_an_async_task_back",),
    ),
    Mutant(
        "django: a schema that holds jobs is dropped",
        "pgnotifyq/django/schema.py",
        "if any(held.values()):",
        "if not held:",
        ("django/test_project.py::test_migration_backwards",),
    ),
    # Transactions on connections of the handler's own.
    Mutant(
        "a completion on a handler's own connection that was not written is taken for one",
        "pgnotifyq/ledger/fences.py",
        'return "unwritten" if surprises else held',
        "return held",
        ("runtime/test_orm_refusals.py::test_confined_to_another_tenant",),
    ),
    Mutant(
        "a completion in ctx.transaction() that was not written is taken for one",
        RUNTIME + "transactions.py",
        "if await ask(connection, settled):",
        "if await ask(connection, settled) is None:",
        ("runtime/test_orm_refusals.py::test_row_that_a_trigger_keeps",),
    ),
    Mutant(
        "a session of SQLAlchemy's goes on after a commit by hand",
        RUNTIME + "fenced.py",
        '    event.listen(connection, "before_cursor_execute", check)\n',
        '    check = lambda *_: None\n    event.listen(connection, "before_cursor_execute", check)\n',
        ("runtime/test_orm_transactions.py::test_ended_by_hand",),
    ),
    Mutant(
        "an engine in autocommit is taken for one with transactions",
        RUNTIME + "fenced.py",
        "    _check_began(driver)\n",
        "",
        ("runtime/test_orm_refusals.py::test_not_ours_to_commit",),
    ),
    Mutant(
        "a handler's block in Django is within another one",
        RUNTIME + "fenced.py",
        "durable=fence.commits",
        "durable=False",
        ("runtime/test_orm_refusals.py::test_not_ours_to_commit",),
    ),
    # Seen from outside: probes, metrics, traces.
    Mutant(
        "a held loop is not seen by probes",
        RUNTIME + "meter.py",
        "return max(0.0, monotonic() - self.at - BEAT_SECONDS)",
        "return 0.0",
        ("runtime/test_probes.py::test_loop_that_is_held",),
    ),
    Mutant(
        "a worker that polls is ready",
        RUNTIME + "probes.py",
        "vitals.is_listening or polling_will_do",
        "True",
        ("runtime/test_probes.py::test_listener_that_is_deaf",),
    ),
    Mutant(
        "a database that is away is not seen by probes",
        RUNTIME + "pulse.py",
        "not any(link.is_down for link in self.links)",
        "True",
        ("runtime/test_probes.py::test_server_that_is_stopped_and_started",),
    ),
    Mutant(
        "a connection to the probes lasts as long as its client likes",
        RUNTIME + "http.py",
        "request.shutdown(socket.SHUT_RDWR)",
        "pass",
        ("runtime/test_probes.py::test_clients_that_say_nothing",),
    ),
    Mutant(
        "a cancel counts as a failure",
        RUNTIME + "meter.py",
        "frozenset({SettleKind.RETRY, SettleKind.BURY})",
        "frozenset({SettleKind.RETRY, SettleKind.BURY, SettleKind.CANCEL})",
        ("runtime/test_metrics.py::test_every_way_to_end",),
    ),
    Mutant(
        "counters appear with their first step",
        RUNTIME + "metrics.py",
        "for key in meter.known:",
        "for key in []:",
        ("runtime/test_metrics.py::test_counters_begin_with_nothing",),
    ),
    Mutant(
        "a handler's span is not current while it runs",
        "pgnotifyq/otel.py",
        "contexts.attach(trace.set_span_in_context(self._span, sent))",
        "contexts.attach(sent)",
        ("runtime/test_traces.py::test_request_to_child_by_links",),
    ),
    Mutant(
        "a handler's span does not link to what created its job",
        "pgnotifyq/otel.py",
        "if creator.is_valid and not parent",
        "if parent",
        ("runtime/test_traces.py::test_request_to_child_by_links",),
    ),
    Mutant(
        "a job is enqueued in bulk without its trace",
        "pgnotifyq/doors/verbs.py",
        "        return traced(job)\n",
        "        return job\n",
        ("runtime/test_traces.py::test_every_door",),
    ),
)
