-- cancel: cancel a job as anybody may, by a plain status update. In: $1 job.
update {schema}.jobs set status = 'cancelled' where id = $1::uuid
