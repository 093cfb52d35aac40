-- begin_fence: bind the transaction that has just begun to an execution
-- (functions/lease/fence.sql).
--
-- In:     $1 job, $2 execution. The statement goes in one message with its `begin`, so the values
--         are written into it.
-- Out:    the transaction's id, for meet_fence.
select {schema}.fence($1::uuid, $2::uuid)
