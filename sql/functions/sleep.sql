-- fall_asleep, wake_up: a worker publishes that it sleeps on its queues, or that it does not. See runtime/sleep.py.
create or replace function {schema}.fall_asleep(worker uuid, on_queues text[]) returns void
language sql volatile
set synchronous_commit = off
as $$
    insert into {schema}.sleepers (queue_name, worker_id)
    select q.name, worker from unnest(on_queues) as q(name)
    on conflict (queue_name, worker_id) do nothing
$$;

-- A worker that stops sleeping because it is full passes on the wake-up that found it so: `hand_on` names the queues.
create or replace function {schema}.wake_up(worker uuid, hand_on text[] default '{{}}') returns void
language plpgsql volatile
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    delete from {schema}.sleepers as s where s.worker_id = worker;
    perform {schema}.wake(q.name, {schema}.clock(), 1)
    from unnest(hand_on) as q(name)
    where {schema}.has_due(q.name);
end
$$;
