-- bound: limit the time of each statement of this transaction. In: $1 milliseconds. This is not
-- said when connecting, because poolers refuse that.
select set_config('statement_timeout', $1::text, true)
