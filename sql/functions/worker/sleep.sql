-- fall_asleep, wake_up: a worker publishes that it sleeps on its queues, or that it does not. See runtime/sleep.py.
-- `job_types` is what it has handlers for; null: whatever its queues have.
-- Its earlier form: beside this one, a call that leaves the last argument out would fit both.
drop function if exists {schema}.fall_asleep(uuid, text[]);
create or replace function {schema}.fall_asleep(worker_id uuid, queue_names text[], job_types text[] default null) returns void
language sql volatile
set synchronous_commit = off
as $$
    insert into {schema}.sleepers as s (queue_name, worker_id, job_types)
    select distinct q.name, fall_asleep.worker_id, fall_asleep.job_types from unnest(queue_names) as q(name)
    on conflict (queue_name, worker_id) do update set job_types = excluded.job_types
    where s.job_types is distinct from excluded.job_types
$$;

-- A worker that stops sleeping because it is full passes on the wake-up that found it so: `hand_on` names the queues.
create or replace function {schema}.wake_up(worker_id uuid, hand_on text[] default '{{}}') returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    delete from {schema}.sleepers as s where s.worker_id = wake_up.worker_id;
    perform {schema}.wake_able(q.name, wake_up.worker_id)
    from unnest(hand_on) as q(name);
end
$$;
