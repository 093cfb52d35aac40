-- What people of a queue do each day: pause and resume. Nothing here rewrites or reads a table, and
-- what the release before says and asks goes on.

-- What is paused: a queue, a job type, or everything. The functions in functions/claim/ read it
-- (admit). A worker of the release before runs the same functions, so it obeys too.
create table {schema}.pauses (
    scope text not null,
    -- The queue, or the job type; of everything it is empty.
    name text not null default '',
    who text not null,
    why text,
    paused_at timestamptz not null default {schema}.clock(),

    constraint pauses_pkey primary key (scope, name),
    constraint scope_is_known check (scope in ('queue', 'job_type', 'everything')),
    constraint everything_has_no_name check ((scope = 'everything') = (name = ''))
);
