-- answer: the least that a session can be asked. All that counts is that it answers.
select
