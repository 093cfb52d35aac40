-- Where a running handler stands, asked of its worker. Nothing here rewrites or reads a table, and
-- what the release before says and asks goes on.

-- Requests for a handler's stack, and the answers of workers (functions/lease/stack.sql). Those of
-- more than ten minutes ago go with the next request. It is unlogged: after a crash nobody waits
-- for an answer any more.
create unlogged table {schema}.stack_requests (
    request_id uuid not null default gen_random_uuid(),
    org_id uuid not null,
    job_id uuid not null,
    execution_id uuid not null,
    -- The worker that held the job when it was asked.
    worker_id uuid not null,
    asked_by text not null default session_user,
    asked_at timestamptz not null default {schema}.clock(),
    answered_at timestamptz,
    -- JSON, in the words of pgnotifyq/model/stack.py. Null: no answer yet.
    stack text,

    constraint stack_requests_pkey primary key (request_id),
    constraint stack_is_small check (octet_length(stack) <= 65536),
    constraint answer_has_time check ((stack is null) = (answered_at is null))
);

alter table {schema}.stack_requests enable row level security;
alter table {schema}.stack_requests force row level security;
create policy one_tenant on {schema}.stack_requests
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));
