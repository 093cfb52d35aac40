-- strike: drop a schema of ours with all that is in it.
drop schema if exists {schema} cascade
