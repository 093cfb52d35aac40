"""What notifications say: one grammar, written and read in one place, by SQL too."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgnotifyq.model import channels
from pgnotifyq.model.channels import Cancel, Company, Finished, Nonce, Work
from pgnotifyq.model.job import ExecutionId, JobId, WorkerId

queues = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}", fullmatch=True)
job_ids = st.uuids().map(JobId)


@given(queue=queues, job_id=st.none() | job_ids)
@example(queue="nonce", job_id=None)
@example(queue="cancel", job_id=None)
@example(queue="work", job_id=None)
@example(queue="work", job_id=JobId(uuid.UUID(int=1)))
def test_work_of_every_legal_queue(queue: str, job_id: JobId | None) -> None:
    """Whatever a queue is called, work for it is read as written: on a worker's channel, and bare on everybody's."""
    assert channels.read(channels.write(Work(queue, job_id))) == Work(queue, job_id)
    assert channels.read(queue) == Work(queue)


@given(job_id=job_ids, execution_id=st.uuids().map(ExecutionId), text=st.uuids())
def test_all_else(job_id: JobId, execution_id: ExecutionId, text: uuid.UUID) -> None:
    """The rest is read as written, too."""
    for news in (Cancel(job_id, execution_id), Nonce(text.hex), Company()):
        assert channels.read(channels.write(news)) == news
    assert channels.read_finished(channels.write(Finished(job_id))) == Finished(job_id)


def test_channels_fit() -> None:
    """The longest name of a channel is within the 63 bytes that LISTEN keeps."""
    assert len(channels.of_worker("s" * 24, WorkerId(uuid.UUID(int=1)))) <= 63
    assert len(channels.of_all_workers("s" * 24)) <= 63


@given(st.text() | st.from_regex(r"(work|cancel|nonce|\+company)( [^ ]*){0,3}"))
@example("cancel 0 0")
@example("cancel " + "f" * 4000 + " " + "f" * 4000)
@example("work \ud800")
def test_what_anybody_may_send(payload: str) -> None:
    """Nothing that is sent raises; what is read is of one of the kinds, and within bounds."""
    news = channels.read(payload)
    match news:
        case Work(queue=queue):
            assert 1 <= len(queue) <= 63
        case Cancel(job_id=job_id, execution_id=execution_id):
            assert max(job_id.int, execution_id.int) < 1 << 128
    channels.read_finished(payload)


@pytest.mark.parametrize("payload", ["work q not-an-id", "work q 1", "work q " + "0" * 36])
def test_job_that_is_not_named_as_ours_name_them(payload: str) -> None:
    """It is work for the queue all the same."""
    assert channels.read(payload) == Work("q")
