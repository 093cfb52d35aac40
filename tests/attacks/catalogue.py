"""The attacks: who, and which SQL. Each is refused by the server, or finds nothing and changes nothing of Bob's."""

from __future__ import annotations

import attrs

JOBS, ACCOUNTS = "select * from pgnotifyq.jobs", "select * from accounts"
ALL = (JOBS, ACCOUNTS, "select * from pgnotifyq.executions", "select * from pgnotifyq.dead_letter_jobs")
SET_BOB = "set local pgnotifyq.org_id = '{bob}'"
FORGED = "select set_config('pgnotifyq.token', '{bob}' || repeat('0', 64), true)"


@attrs.frozen
class Attack:
    """One attack. `{name}` in its SQL is filled in by the stage."""

    name: str
    who: str  # handler, producer, observer, admin, worker, plain
    statements: tuple[str, ...]
    # Whether the last statement must be refused. Else it may be answered with nothing.
    refused: bool = False


def _of(who: str, *given: tuple[str, tuple[str, ...] | str], refused: bool = False) -> list[Attack]:
    return [Attack(name, who, (said,) if isinstance(said, str) else said, refused) for name, said in given]


HANDLER = [
    *_of(
        "handler",
        # Settings
        ("other tenant by the setting", (SET_BOB, *ALL)),
        ("other tenant within one statement",
         "with x as materialized (select set_config('pgnotifyq.org_id', '{bob}', true)) select j.* from x, pgnotifyq.jobs as j"),
        ("no tenant", ("set local pgnotifyq.org_id = ''", "set local pgnotifyq.token = ''", *ALL)),
        ("forged token", (FORGED, *ALL)),
        ("own digest for the other tenant",
         ("select set_config('pgnotifyq.token', '{bob}' || substr(current_setting('pgnotifyq.token'), 37), true)", *ALL)),
        ("token that is no token", ("set local pgnotifyq.token = 'x'", *ALL)),
        ("token of the transaction before",
         ("select set_config('pgnotifyq.kept', current_setting('pgnotifyq.token'), false)", "commit", "begin",
          "select set_config('pgnotifyq.token', '{bob}' || substr(current_setting('pgnotifyq.kept'), 37), true)", *ALL)),
        ("settings reset", ("reset all", *ALL)),
        ("settings discarded", ("commit", "discard all", *ALL)),
        ("row security off", ("set local row_security = off", *ALL)),
        ("row security off for later", ("commit", "set row_security = off", *ALL)),
        ("search path", ("set local search_path = pg_temp, public", "select pgnotifyq.current_org()", *ALL)),
        ("clock", ("set local pgnotifyq.clock = '2100-01-01'", *ALL)),
        ("triggers off", ("set local session_replication_role = replica", *ALL)),
        # Roles
        ("role reset", ("reset role", *ALL)),
        ("role none", ("set role none", *ALL)),
        ("role in a block", ("do $$ begin reset role; end $$", *ALL)),
        ("authorization reset", ("commit", "reset session authorization", *ALL)),
        ("setting for good", ("alter role {login} set pgnotifyq.org_id = '{bob}'", *ALL)),
        # Transactions and cursors
        ("commit by hand", ("commit", *ALL)),
        ("commit and chain", ("commit and chain", *ALL)),
        ("roll back by hand", ("rollback", *ALL)),
        ("savepoint", ("savepoint a", "set local pgnotifyq.token = ''", "rollback to savepoint a", *ALL)),
        ("cursor with hold", ("declare c cursor with hold for " + JOBS, "commit", "fetch all from c")),
        ("cursor with hold, token gone",
         ("declare c cursor with hold for " + JOBS, "set local pgnotifyq.token = ''", "set local pgnotifyq.org_id = ''", "commit",
          "fetch all from c")),
        ("cursor from before", ("declare c cursor for " + JOBS, SET_BOB, FORGED, "fetch all from c")),
        ("prepared before", ("prepare p as " + JOBS, SET_BOB, FORGED, "execute p", "commit", "execute p")),
        # Functions that leak what they are given
        ("leaking condition",
         (("create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as"
          " $$ begin raise notice 'leak %', $1; return true; end $$"),
          "select count(*) from pgnotifyq.jobs where pg_temp.leak(payload::text)",
          "select count(*) from accounts where pg_temp.leak(secret)",
          "select count(*) from pgnotifyq.executions where pg_temp.leak(error_message)")),
        ("leaking operator",
         (("create function pg_temp.leak(text, text) returns boolean language plpgsql cost 0.0000001 as"
          " $$ begin raise notice 'leak %', $1; return true; end $$"),
          "create operator pg_temp.=== (leftarg = text, rightarg = text, function = pg_temp.leak)",
          "select count(*) from accounts where secret operator(pg_temp.===) 'x'")),
        ("error as an oracle",
         "select 1 / (case when payload::text like '%bobs%' then 0 else 1 end), 1 / (select count(*) from accounts) from pgnotifyq.jobs"),
        ("cast as an oracle", "select secret::integer from accounts where secret <> 'anns'"),
        ("definer of its own", (("create function pg_temp.f() returns setof accounts language sql security definer as"
                                " 'select * from public.accounts'"), "select * from pg_temp.f()")),
        ("temporary view", ("create temporary view v as select * from accounts", "select * from v")),
        ("temporary table in the way", ("create temporary table accounts as select 1", "select * from public.accounts")),
        # Statistics and the catalog
        ("statistics", "select most_common_vals::text, histogram_bounds::text from pg_stats where schemaname = 'pgnotifyq'"),
        ("statistics of a user's table", "select most_common_vals::text from pg_stats where tablename = 'accounts'"),
        ("statements of others", "select query from pg_stat_activity where pid <> pg_backend_pid()"),
        # By id
        ("cancel by id", "select pgnotifyq.cancel('{pending_id}'), pgnotifyq.cancel('{running_id}')"),
        ("cancel by update", "update pgnotifyq.jobs set status = 'cancelled' where id in ('{pending_id}', '{running_id}')"),
        ("cancel all", "update pgnotifyq.jobs set status = 'cancelled' where status in ('pending', 'running')"),
        ("await by id", "select pgnotifyq.await_job('{running_id}')"),
        ("lock by id", "select * from pgnotifyq.jobs where id = '{pending_id}' for update"),
        ("history by id", "select pgnotifyq.history('{dead_id}', '{bob}')::text"),
        ("fence of another's execution", "select pgnotifyq.meet_fence('{running_id}', '{execution}', pg_current_xact_id()::text)"),
        ("hold another's execution", "select pgnotifyq.still_holds('{running_id}', '{execution}')"),
        ("unique key of another", "select pgnotifyq.enqueue('noop', org_id => '{ann}', unique_key => 'k')::text"),
        ("another's account", "update accounts set secret = 'stolen' where org_id = '{bob}'"),
        ("own account for another", "update accounts set org_id = '{bob}'"),
        ("delete another's account", "delete from accounts where secret = 'bobs_secret'"),
        # Notifications and locks
        ("listening", ("listen pgnotifyq_work", "listen pgnotifyq_finished", "commit", "select * from pg_listening_channels()")),
        ("forged notification", "select pg_notify('pgnotifyq_work', 'held')"),
        ("lock of a worker", "select pg_try_advisory_lock(pgnotifyq.session_key('{worker_id}'))"),
    ),
    *_of(
        "handler",
        ("role of the owner", "set role {owner}"),
        ("role of the worker", "set role {worker}"),
        ("authorization of the owner", "set session authorization {owner}"),
        ("keys of the tokens", "select * from pgnotifyq.tenant_keys"),
        ("key by its function", "select pgnotifyq.tenant_key()"),
        ("password", "select * from pgnotifyq.tenant_logins"),
        ("password by its function", "select * from pgnotifyq.tenant_login()"),
        ("holder of a key", "select pgnotifyq.key_holder('{bob}', 'noop', 'k')"),
        ("new key", "select pgnotifyq.new_tenant_key()"),
        ("made a worker", "select pgnotifyq.grant_role('worker', '{login}')"),
        ("insert for another", "insert into pgnotifyq.jobs (org_id, job_type) values ('{bob}', 'noop')"),
        ("enqueue for another", "select pgnotifyq.enqueue('noop', org_id => '{bob}')"),
        ("enqueue many for another",
         ("select * from pgnotifyq.enqueue_many(array[gen_random_uuid()], array['{bob}'::uuid], array['held'], array['noop'], array['1'],"
         " array[0::smallint], array[null::timestamptz], array[null::float8], array[null::integer], array[null::text])")),
        ("id that is another's", "insert into pgnotifyq.jobs (id, org_id, job_type) values ('{pending_id}', '{ann}', 'noop')"),
        ("id of another's dead letter", "insert into pgnotifyq.jobs (id, org_id, job_type) values ('{dead_id}', '{ann}', 'noop')"),
        ("job that is done", "insert into pgnotifyq.jobs (org_id, job_type, status, completed_at) values ('{ann}', 'x', 'completed', now())"),
        ("account for another", "insert into accounts (org_id, secret) values ('{bob}', 'x')"),
        ("key of another's account", "insert into accounts (org_id, secret) values ('{bob}', 'bobs_secret')"),
        ("job of another tenant", "update pgnotifyq.jobs set org_id = '{bob}'"),
        ("attempts", "update pgnotifyq.jobs set attempts = 0"),
        ("delete", "delete from pgnotifyq.jobs"),
        ("truncate", "truncate accounts"),
        ("requeue", "select pgnotifyq.requeue('{dead_id}')"),
        ("complete", "select * from pgnotifyq.complete('{worker_id}', array['{running_id}'::uuid], array['{execution}'::uuid])"),
        ("claim", "select * from pgnotifyq.claim('{worker_id}', array['held'], 1, 60)"),
        ("reclaim", "select * from pgnotifyq.reclaim('{worker_id}', 10)"),
        ("prune", "select * from pgnotifyq.prune(0, null, 10)"),
        ("retention", "select pgnotifyq.set_retention('held', 0)"),
        ("erase", "select pgnotifyq.erase(org_id => '{bob}')"),
        ("erase its own", "select pgnotifyq.erase(org_id => '{ann}')"),
        ("workers", "select * from pgnotifyq.worker_heartbeats"),
        ("sleepers", "select * from pgnotifyq.sleepers"),
        ("handlers' workers", "select worker_id from pgnotifyq.handlers"),
        ("fences", "delete from pgnotifyq.fences"),
        ("lock of the table", "lock table pgnotifyq.jobs in row exclusive mode"),
        ("copy for another", "copy pgnotifyq.jobs (org_id, job_type) from stdin"),
        ("program", "copy (select 1) to program 'true'"),
        ("file", "select pg_read_file('postgresql.conf')"),
        ("policy off", "alter table pgnotifyq.jobs disable row level security"),
        ("policy of its own", "create policy mine on accounts using (true)"),
        ("trigger of its own", "create trigger t before insert on pgnotifyq.jobs execute function pgnotifyq.refuse_transition()"),
        ("trigger on a user's table", "create trigger t before insert on accounts execute function pgnotifyq.refuse_transition()"),
        ("reference to a job", "create temporary table r (id uuid references pgnotifyq.jobs)"),
        ("rule of its own", "create rule r as on insert to accounts do instead nothing"),
        ("function in public", "create function public.f() returns integer language sql as 'select 1'"),
        ("schema of its own", "create schema mine"),
        ("role of its own", "create role mine"),
        ("superuser", "alter role {login} superuser"),
        ("granted to itself", "grant select on pgnotifyq.tenant_keys to {login}"),
        ("end another session", "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{login}' and pid <> pg_backend_pid()"),
        ("passwords of the server", "select rolpassword from pg_authid"),
        ("statistics as they are kept", "select * from pg_statistic"),
        refused=True,
    ),
]  # fmt: skip

NEW_ID = "pgnotifyq.new_id()"
PRODUCER = [
    *_of(
        "producer",
        ("jobs of others", ALL),
        ("jobs of a tenant", (SET_BOB, *ALL)),
        ("job by id", "select * from pgnotifyq.jobs where id = '{pending_id}'"),
        ("cancel others' by id", "select pgnotifyq.cancel('{pending_id}'), pgnotifyq.cancel('{running_id}')"),
        ("cancel all others'", "update pgnotifyq.jobs set status = 'cancelled'"),
        ("history of others", "select * from pgnotifyq.job_executions"),
        ("id of a dead letter", "insert into pgnotifyq.jobs (id, org_id, job_type) values ('{dead_id}', '{ann}', 'noop')"),
        ("key of another's job", "select pgnotifyq.enqueue('noop', org_id => '{ann}', unique_key => 'k')::text"),
        ("leaking condition",
         (("create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as"
          " $$ begin raise notice 'leak %', $1; return true; end $$"),
          "select count(*) from pgnotifyq.jobs where pg_temp.leak(payload::text)")),
        ("statistics", "select most_common_vals::text from pg_stats where schemaname = 'pgnotifyq'"),
    ),
    *_of(
        "producer",
        ("users' table", ACCOUNTS),
        ("completed job", f"insert into pgnotifyq.jobs (id, job_type, status, completed_at) values ({NEW_ID}, 'x', 'completed', now())"),
        ("running job",
         ("insert into pgnotifyq.jobs (job_type, status, attempts, locked_by, current_execution_id, started_at, lease_expires_at)"
         " values ('x', 'running', 1, gen_random_uuid(), gen_random_uuid(), now(), '2999-01-01')")),
        ("id that is always first", "insert into pgnotifyq.jobs (id, job_type) values ('ffffffff-ffff-7fff-bfff-ffffffffffff', 'x')"),
        ("id without a time", "insert into pgnotifyq.jobs (id, job_type) values (gen_random_uuid(), 'x')"),
        ("id that is taken", "insert into pgnotifyq.jobs (id, job_type) values ('{pending_id}', 'x')"),
        ("names that are none", "insert into pgnotifyq.jobs (job_type, queue_name) values (E'x\\x1b[2J', E'q\\n')"),
        ("payload too large", "insert into pgnotifyq.jobs (job_type, payload) values ('x', to_jsonb(repeat('x', 2000000)))"),
        ("time without end", "insert into pgnotifyq.jobs (job_type, scheduled_at) values ('x', 'infinity')"),
        ("made long ago", "insert into pgnotifyq.jobs (job_type, created_at) values ('x', '2000-01-01')"),
        ("in another's name", "insert into pgnotifyq.jobs (job_type, enqueued_by) values ('x', '{other_producer}')"),
        ("insert letters", "insert into pgnotifyq.dead_letter_jobs select * from pgnotifyq.dead_letter_jobs"),
        ("insert history", "insert into pgnotifyq.job_executions select * from pgnotifyq.job_executions"),
        ("insert sleepers", "insert into pgnotifyq.sleepers values ('default', gen_random_uuid())"),
        ("register a worker", "select pgnotifyq.register_worker(gen_random_uuid(), 'h', 1, array['q'], 1, 'v', true, 1)"),
        ("publish handlers", "select pgnotifyq.publish_handlers(gen_random_uuid(), '{x}', '{null}', '{null}')"),
        ("claim what it enqueues",
         ("select * from pgnotifyq.enqueue_claimed(gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1e9, gen_random_uuid(), 'zz',"
         " 'x', '{}', 0::smallint, 3)")),
        ("claim", "select * from pgnotifyq.claim('{worker_id}', array['held'], 1, 60)"),
        ("delete", "delete from pgnotifyq.jobs"),
        ("erase", "select pgnotifyq.erase(org_id => '{ann}')"),
        ("requeue", "select pgnotifyq.requeue('{dead_id}')"),
        ("workers", "select * from pgnotifyq.worker_heartbeats"),
        ("sleepers", "select * from pgnotifyq.sleepers"),
        ("troubles", "select * from pgnotifyq.job_troubles"),
        ("keys of the tokens", "select * from pgnotifyq.tenant_keys"),
        ("key by its function", "select pgnotifyq.tenant_key()"),
        ("password", "select * from pgnotifyq.tenant_login()"),
        ("token", "select pgnotifyq.unsealed('{bob}')"),
        ("role of the worker", "set role {worker}"),
        ("lock of the table", "lock table pgnotifyq.jobs in share mode"),
        ("copy", "copy pgnotifyq.jobs (job_type) from stdin"),
        refused=True,
    ),
]  # fmt: skip

OBSERVER = _of(
    "observer",
    ("enqueue", "select pgnotifyq.enqueue('noop', org_id => '{bob}')"),
    ("cancel", "select pgnotifyq.cancel('{pending_id}')"),
    ("update", "update pgnotifyq.jobs set status = 'cancelled'"),
    ("delete", "delete from pgnotifyq.dead_letter_jobs"),
    ("requeue", "select pgnotifyq.requeue('{dead_id}')"),
    ("claim", "select * from pgnotifyq.claim('{worker_id}', array['held'], 1, 60)"),
    ("lock rows", "select * from pgnotifyq.jobs for update"),
    ("keys of the tokens", "select * from pgnotifyq.tenant_keys"),
    ("key by its function", "select pgnotifyq.tenant_key()"),
    ("password", "select * from pgnotifyq.tenant_login()"),
    ("users' table", ACCOUNTS),
    ("retention", "select pgnotifyq.set_retention('held', 0)"),
    ("made a worker", "select pgnotifyq.grant_role('worker', '{observer}')"),
    refused=True,
)

ADMIN = _of(
    "admin",
    ("keys of the tokens", "select * from pgnotifyq.tenant_keys"),
    ("key by its function", "select pgnotifyq.tenant_key()"),
    ("password", "select * from pgnotifyq.tenant_login()"),
    ("users' table", ACCOUNTS),
    ("forged worker", "insert into pgnotifyq.sleepers values ('default', gen_random_uuid())"),
    refused=True,
)

WORKER = _of(
    "worker",
    ("keys of the tokens", "select * from pgnotifyq.tenant_keys"),
    ("users' table", ACCOUNTS),
    ("erase", "select pgnotifyq.erase(org_id => '{bob}')"),
    ("policy off", "alter table pgnotifyq.jobs disable row level security"),
    ("made an admin", "select pgnotifyq.grant_role('admin', '{worker}')"),
    ("new key", "select pgnotifyq.new_tenant_key()"),
    refused=True,
)

PLAIN = _of(
    "plain",
    ("enqueue", "select pgnotifyq.enqueue('noop')"),
    ("jobs", JOBS),
    ("users' table", ACCOUNTS),
    ("insert", "insert into pgnotifyq.jobs (job_type) values ('x')"),
    ("cancel", "select pgnotifyq.cancel('{pending_id}')"),
    ("tenant by the setting", (SET_BOB, JOBS)),
    ("tenant by a token", (FORGED, JOBS)),
    ("key by its function", "select pgnotifyq.tenant_key()"),
    ("fence", "select pgnotifyq.fence('{running_id}', '{execution}')"),
    ("role of the tenants", "set role {login}"),
    ("lock of the table", "lock table pgnotifyq.jobs in access share mode"),
    ("trigger", "create trigger t before insert on pgnotifyq.jobs execute function pgnotifyq.refuse_transition()"),
    refused=True,
) + _of(
    "plain",
    ("statistics", "select most_common_vals::text from pg_stats where schemaname = 'pgnotifyq'"),
    ("statements of others", "select query from pg_stat_activity where pid <> pg_backend_pid()"),
)  # fmt: skip

CONFIG, TRAIL, PAPERS = "select * from pgnotifyq.org_config", "select * from pgnotifyq.org_audit", "select * from papers"
CREDENTIALS = "select * from pgnotifyq.org_credentials"
LEAK = "create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise notice '%', $1; return true; end $$"
FORGE = "insert into pgnotifyq.org_audit (org_id, action) values ('{bob}', 'forged')"
# What a tenant has besides its jobs, and a table of the application's that `protect` has named.
ORG = [
    *_of(
        "handler",
        ("other tenant's settings, trail, papers", (SET_BOB, CONFIG, TRAIL, PAPERS)),
        ("the same by a forged token", (FORGED, CONFIG, TRAIL, PAPERS)),
        ("the same without a tenant", ("set local pgnotifyq.org_id = ''", "set local pgnotifyq.token = ''", CONFIG, TRAIL, PAPERS)),
        ("trail of the other tenant by the setting", (SET_BOB, "select pgnotifyq.audit('forged')")),
        ("trail after the commit", ("commit", SET_BOB, "select pgnotifyq.audit('forged')")),
        ("leaking condition on papers", (LEAK, "select count(*) from papers where pg_temp.leak(secret)")),
        ("leaking condition on settings", (LEAK, "select count(*) from pgnotifyq.org_config where pg_temp.leak(value::text)")),
        ("another org_or_null", ("create function pg_temp.org_or_null(text) returns uuid language sql as $$ select pgnotifyq.current_org() $$",
                                 "set local search_path = pg_temp, public", PAPERS)),
        ("another sha256", ("create function pg_temp.lower(text) returns text language sql as $$ select '{ann}' $$",
                            "set local search_path = pg_temp, public, pg_catalog", PAPERS)),
        ("papers' estimate", "explain select * from papers where account = '{bob}'"),
    ),
    *_of(
        "handler",
        ("credentials", CREDENTIALS),
        ("credentials moved", "update pgnotifyq.org_credentials set org_id = '{ann}'"),
        ("credential of its own", "insert into pgnotifyq.org_credentials (org_id, name, key_id, sealed) values ('{ann}', 'a', 'k', 's')"),
        ("limit of its own", "select pgnotifyq.set_org_config('{ann}', 'limit', '1000')"),
        ("limit gone", "select pgnotifyq.unset_org_config('{ann}', 'limit')"),
        ("limit of the other tenant", (SET_BOB, "update pgnotifyq.org_config set value = '0'")),
        ("trail changed", "update pgnotifyq.org_audit set action = 'nothing'"),
        ("trail deleted", ("set local pgnotifyq.prunes_audit = 'yes'", "delete from pgnotifyq.org_audit")),
        ("trail pruned", "select pgnotifyq.prune_audit(0)"),
        ("trail truncated", "truncate pgnotifyq.org_audit"),
        ("trail forged", FORGE),
        ("trail forged by its function", "select pgnotifyq.audit_for('{bob}', 'forged')"),
        ("trail's trigger off", "alter table pgnotifyq.org_audit disable trigger audit_is_append_only"),
        ("name of the other tenant", "insert into pgnotifyq.org_names (org_id, name) values (pgnotifyq.org('bob'), 'bob')"),
        ("papers for the other tenant", "insert into papers values ('{bob}', 'x')"),
        ("papers for the other tenant, otherwise written", "insert into papers values (upper(replace('{bob}', '-', '')), 'x')"),
        ("papers moved", "update papers set account = '{bob}'"),
        ("papers for nobody", "insert into papers (secret) values ('x')"),
        ("papers unprotected", "select pgnotifyq.unprotect('papers')"),
        ("papers protected otherwise", "select pgnotifyq.protect('papers', 'secret')"),
        ("policy dropped", "drop policy pgnotifyq_one_tenant on papers"),
        refused=True,
    ),
    *(attack for who in ("producer", "observer", "plain") for attack in _of(
        who,
        ("settings", CONFIG),
        ("credentials", CREDENTIALS),
        ("trail", TRAIL),
        ("setting set", "select pgnotifyq.set_org_config('{bob}', 'limit', '0')"),
        ("trail forged", FORGE),
        ("trail by its function", (SET_BOB, "select pgnotifyq.audit('forged')")),
        refused=True,
    )),
    *_of(
        "worker",
        ("setting set", "select pgnotifyq.set_org_config('{bob}', 'limit', '0')"),
        ("credential replaced", "update pgnotifyq.org_credentials set sealed = 'x'"),
        ("trail changed", "update pgnotifyq.org_audit set action = 'nothing'"),
        ("trail deleted", "delete from pgnotifyq.org_audit"),
        ("papers unprotected", "select pgnotifyq.unprotect('papers')"),
        refused=True,
    ),
    *_of("admin", ("trail changed", "update pgnotifyq.org_audit set action = 'nothing'"),
         ("trail deleted", "delete from pgnotifyq.org_audit"), ("trail forged", "select pgnotifyq.audit('forged')"), refused=True),
]  # fmt: skip

ATTACKS = [*HANDLER, *PRODUCER, *OBSERVER, *ADMIN, *WORKER, *PLAIN, *ORG]
