-- answer: the least that a session can be asked. That it answers is all that is wanted.
select
