-- begin_fence: bind the transaction that has just begun to an execution
-- (functions/lease/fence.sql).
--
-- In:     $1 job, $2 execution. It goes in one message with its `begin`, so they are written out.
-- Out:    the transaction's id, for meet_fence.
select {schema}.fence($1::uuid, $2::uuid)
