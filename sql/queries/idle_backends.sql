-- idle_backends: which of some sessions wait for their client, and since when. In: $1 their process
-- numbers. A role sees the state of its own sessions; of others it would need pg_read_all_stats.
select pid, state_change
from pg_stat_activity
where pid = any ($1::integer[]) and state like 'idle%'
