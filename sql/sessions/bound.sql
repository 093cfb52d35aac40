-- bound: bound each statement of this transaction. In: $1 milliseconds. Not said when connecting,
-- for poolers refuse that.
select set_config('statement_timeout', $1::text, true)
