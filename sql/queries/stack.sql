-- stack: the answer to a request for a handler's stack; no row: the request is gone.
select s.stack from {schema}.stack_requests as s where s.request_id = $1
