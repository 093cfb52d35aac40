-- enqueued_at: when a job was enqueued, by the database's clock. An enqueue returns the id alone.
-- In: job id.
-- Index: the primary key.
select j.created_at from {schema}.jobs as j where j.id = $1
