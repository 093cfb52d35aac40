-- meet_fence: take off what confines a fenced transaction, in this order, and then ask whether it
-- may commit (functions/lease/fence.sql).
-- In: $1 job, $2 execution, $3 the transaction that was bound. Out: the last column: held,
--     cancelled, lost, left.
select set_config('role', 'none', true), set_config('pgnotifyq.org_id', '', true),
    {schema}.meet_fence($1::uuid, $2::uuid, $3::text)
