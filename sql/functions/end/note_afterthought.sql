-- note_afterthought: note what a handler raised after its own transaction had completed its job.
-- Only the history changes: the attempt gets the message, once.
create or replace function {schema}.note_afterthought(job_id uuid, execution_id uuid, error_message text) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    update {schema}.job_executions as e
    set error_message = note_afterthought.error_message
    where e.job_id = note_afterthought.job_id and e.id = note_afterthought.execution_id
      and e.outcome = 'completed' and e.error_message is null;
    return found;
end
$$;
