-- pauses: what is paused, the oldest first.
select p.scope, p.name, p.who, p.why, p.paused_at from {schema}.pauses as p order by p.paused_at, p.scope, p.name
