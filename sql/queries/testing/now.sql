-- now: what the queue's clock says. For a program's tests.
select {schema}.clock()
