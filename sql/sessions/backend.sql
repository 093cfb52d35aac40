-- backend: the number of the process that answers.
select pg_backend_pid()
