-- set_state: show a worker as running or draining. One row, by its key.
-- In: $1 state, $2 worker.
update {schema}.worker_heartbeats set state = $1::text where worker_id = $2::uuid
