"""`enqueue -`: many jobs from standard input, one a line, all or none; and `cancel -`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.cli.jobs import cancel, enqueue
from pgnotifyq.cli.lines import CHUNK_LINES_MAX, LINE_BYTES_MAX, TOLD_LINES_MAX, Lines
from pgnotifyq.cli.parameters import seconds_of, time_of
from pgnotifyq.model.errors import InvalidJob
from tests.cli.support import PATIENCE_SECONDS, PGNOTIFYQ

if TYPE_CHECKING:
    from collections.abc import Callable

ORG = "00000000-0000-0000-0000-00000000000a"


def lines(*said: object) -> str:
    return "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in said)


def fetch(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as session:
        return session.execute(query.encode()).fetchall()


def test_every_option_in_a_line(run: Callable[..., Any], dsn: str) -> None:
    """Ids are printed in the order of the lines; a blank line and a mark of byte order are nothing; null is not said."""
    ran = run(
        "enqueue", "-",
        stdin="\ufeff" + lines(
            {
                "job_type": "a", "payload": {"n": 1}, "queue": "q", "priority": 3, "at": "2099-01-01T00:00:00+01:00",
                "max_attempts": 2, "org": ORG, "unique_key": "k", "headers": {"trace": "x"},
            },
            "", {"job_type": "b", "in": "1d", "queue": None, "payload": None}, {"job_type": "c"},
        ),
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert [(str(job_id), *rest) for job_id, *rest in fetch(dsn, "select id, job_type, payload from pgnotifyq.jobs order by job_type")] == [
        (ran.out.split()[0], "a", {"n": 1}), (ran.out.split()[1], "b", {}), (ran.out.split()[2], "c", {}),
    ]  # fmt: skip
    (a, b, c) = fetch(
        dsn,
        "select queue_name, priority, scheduled_at, max_attempts, org_id::text, unique_key, headers,"
        " scheduled_at > now() + interval '23 hours' from pgnotifyq.jobs order by job_type",
    )
    assert (*a[:2], a[2].isoformat(), *a[3:]) == ("q", 3, "2098-12-31T23:00:00+00:00", 2, ORG, "k", {"trace": "x"}, True)
    assert (b[0], b[-1], c[-1]) == ("default", True, False)


def test_payload_lines_of_one_type(run: Callable[..., Any], dsn: str) -> None:
    """With --type. The options count for every line; what a line says itself counts before them."""
    run("enqueue", "-", "--type", "resize", "--queue", "q", "--in", "2h", "--json", stdin=lines({"a": 1}, [2], 3, None))
    assert fetch(dsn, "select payload from pgnotifyq.jobs where queue_name = 'q' and job_type = 'resize' order by id") == [
        ({"a": 1},), ([2],), (3,), ({},),
    ]  # fmt: skip
    run("enqueue", "-", "--in", "2h", "--queue", "later", stdin=lines({"job_type": "x", "at": "2000-01-01T00:00Z"}))
    assert fetch(dsn, "select extract(year from scheduled_at) from pgnotifyq.jobs where queue_name = 'later'") == [(2000,)]


def test_json_says_each_lines_number(run: Callable[..., Any], dsn: str) -> None:
    """An object a line, blank lines counted."""
    ran = run("enqueue", "-", "--json", stdin=lines({"job_type": "a"}, "", {"job_type": "b"}))
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["line"] for one in told] == [1, 3]
    assert {one["id"] for one in told} == {str(found) for (found,) in fetch(dsn, "select id from pgnotifyq.jobs")}


BAD = {
    "not json": ("{", "it is not JSON"),
    "no object": ("[1]", "--type"),
    "no type": ({"payload": 1}, "no job_type"),
    "a type of no name": ({"job_type": 7}, "no job_type"),
    "a word of nobody's": ({"job_type": "a", "payloud": 1}, "'payloud'"),
    "a queue of no name": ({"job_type": "a", "queue": "a b\n"}, "queue"),
    "said twice": ({"job_type": "a", "in": "5s", "delay_seconds": 5}, "said twice"),
    "two times": ({"job_type": "a", "in": "5s", "at": "2030-01-01T00:00Z"}, "both"),
    "no zone": ({"job_type": "a", "at": "2030-01-01T00:00"}, "no time zone"),
    "no unit": ({"job_type": "a", "in": "90"}, "no length of time"),
    "a number for a text": ({"job_type": "a", "in": 90}, "no text"),
    "priority out of range": ({"job_type": "a", "priority": 40_000}, "priority"),
    "no headers": ({"job_type": "a", "headers": 5}, "headers"),
    "no tenant": ({"job_type": "a", "org": []}, "org"),
    "NUL": ({"job_type": "a", "payload": "\x00"}, "payload"),
    "deep": ("[" * 5000, "it is not JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_line(kind: str) -> None:
    """It is told with its number, and what is wrong with it."""
    bad, words = BAD[kind]
    source = io.BytesIO(lines({"job_type": "a"}, "", bad, {"job_type": "a"}).encode())
    with pytest.raises(InvalidJob, match=r"^line 3 is no job: ") as refused:
        Lines(source, defaults={}, job_type=None, goes_on=False).take(10)
    assert words in str(refused.value)


def test_line_that_is_not_utf8() -> None:
    """It is told as any other."""
    with pytest.raises(InvalidJob, match=r"^line 1 is no job: it is not JSON"):
        Lines(io.BytesIO(b'{"job_type": "\xff"}'), defaults={}, job_type=None, goes_on=False).take(10)


def test_bad_line_after_many_good_ones(run: Callable[..., Any], dsn: str) -> None:
    """What went to the server before is rolled back. No id is printed, and it is told in two lines."""
    ran = run("enqueue", "-", stdin=lines(*[{"job_type": "a"}] * (CHUNK_LINES_MAX * 2), "oops"))
    assert (ran.code, ran.out) == (2, "")
    stand, why = ran.err.splitlines()
    assert stand == "pgnotifyq: nothing was enqueued"
    assert why.startswith(f"pgnotifyq: line {CHUNK_LINES_MAX * 2 + 1} is no job: ")
    assert fetch(dsn, "select count(*) from pgnotifyq.jobs") == [(0,)]


def test_going_on(run: Callable[..., Any], dsn: str) -> None:
    """With --continue, bad lines are told and counted, the others are enqueued, and the exit code says so."""
    ran = run("enqueue", "-", "--continue", stdin=lines({"job_type": "a"}, *["oops"] * (TOLD_LINES_MAX + 5), {"job_type": "b"}))
    told = ran.err.splitlines()
    assert (ran.code, len(ran.out.split()), len(told)) == (1, 2, TOLD_LINES_MAX + 1)
    assert told[0].startswith("pgnotifyq: line 2 is passed over: ")
    assert told[-1] == f"pgnotifyq: {TOLD_LINES_MAX + 5} lines were passed over, 2 jobs enqueued"
    assert len(fetch(dsn, "select from pgnotifyq.jobs")) == 2


def test_line_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one line, however long: what follows keeps its number."""
    source = io.BytesIO(lines("x" * (LINE_BYTES_MAX * 2 + 10), "oops", {"job_type": "a"}).encode())
    read = Lines(source, defaults={}, job_type=None, goes_on=True)
    assert [number for number, _ in read.take(10)] == [3]
    assert [line.split(" is ")[0] for line in capsys.readouterr().err.splitlines()] == ["pgnotifyq: line 1", "pgnotifyq: line 2"]
    assert read.take(10) == []


def test_batches(run: Callable[..., Any], dsn: str) -> None:
    """Each is a transaction: those before a bad line stay, and it is told up to which line."""
    ran = run("enqueue", "-", "--batch", "2", stdin=lines(*[{"job_type": "a"}] * 5, "oops"))
    assert (ran.code, len(ran.out.split())) == (2, 4)
    assert "the lines up to 4 are enqueued, and no later one" in ran.err
    assert len(fetch(dsn, "select from pgnotifyq.jobs")) == 4
    many = CHUNK_LINES_MAX + 7
    ran = run("enqueue", "-", "--batch", str(many), stdin=lines(*[{"job_type": "b"}] * (many + CHUNK_LINES_MAX + 1), "oops"))
    assert (ran.code, len(ran.out.split())) == (2, many)
    assert fetch(dsn, "select count(*) from pgnotifyq.jobs where job_type = 'b'") == [(many,)]


def test_job_that_the_database_refuses(run: Callable[..., Any], dsn: str) -> None:
    """Its transaction is rolled back, and it is told how far it went."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("alter table pgnotifyq.jobs add constraint not_three check (payload <> '3')")
    ran = run("enqueue", "-", "--type", "a", "--batch", "2", stdin=lines(1, 2, 3, 4))
    assert (ran.code, len(ran.out.split())) == (1, 2)
    assert "the lines up to 2 are enqueued" in ran.err
    assert "not_three" in ran.err


def test_interrupted_while_it_waits(dsn: str) -> None:
    """Ctrl-C ends it while no line comes. What a batch has committed is printed, the open one is rolled back."""
    command = [*PGNOTIFYQ, "enqueue", "-", "--type", "a", "--batch", "2"]
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines(1, 2, 3))
        process.stdin.flush()
        first = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (130, "", "")
    assert [f"{found}\n" for (found,) in fetch(dsn, "select id from pgnotifyq.jobs order by id")] == first


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["x"], {"batch": 5}),
        (["x"], {"line_type": "y"}),
        (["x"], {"go_on": True}),
        (["-", '{"a": 1}'], {}),
        (["x"], {"within": "5m", "at": "2030-01-01T00:00Z"}),
        (["x"], {"within": "5m", "delay_seconds": 5.0}),
        (["x"], {"at": "2030-01-01T00:00"}),
    ],
    ids=["batch", "type", "continue", "payload", "in and at", "in and delay", "no zone"],
)
def test_options_that_do_not_go_together(arguments: list[str], options: dict[str, Any]) -> None:
    """They are refused before anything is asked of a database."""
    with pytest.raises(InvalidJob):
        enqueue(*arguments, **options)


def test_one_job_later(run: Callable[..., Any], dsn: str) -> None:
    """--in says how long from now."""
    run("enqueue", "x", "--in", "1h30m")
    assert fetch(dsn, "select scheduled_at - created_at between interval '89 min' and interval '91 min' from pgnotifyq.jobs") == [
        (True,)
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("1w", 604_800), ("1d12h", 129_600), ("1.5h", 5400), ("0s", 0)]
)  # fmt: skip
def test_length_of_time(text: str, seconds: float) -> None:
    """Numbers with units."""
    assert seconds_of("--in", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "s", "-5m", "5 m", "5M", "1e3s", "nan", "infs", "٣s", "5m\n", "1.s", "9" * 5000 + "s"]
)
def test_no_length_of_time(text: str) -> None:
    """A number without a unit is refused, for 90 could be minutes."""
    with pytest.raises(InvalidJob, match="--in"):
        seconds_of("--in", text)


@pytest.mark.parametrize("text", ["", "tomorrow", "2030-01-31", "2030-01-31T12:00", "9" * 5000])
def test_no_time(text: str) -> None:
    """A time has a zone."""
    with pytest.raises(InvalidJob, match="--at"):
        time_of("--at", text)


def test_cancelling_what_jobs_lists(run: Callable[..., Any], dsn: str) -> None:
    """Ids from standard input; headings are passed over; one that is unknown is told, and the others are cancelled."""
    ids = run("enqueue", "-", "--type", "x", stdin=lines(1, 2, 3)).out.split()
    unknown = "00000000-0000-0000-0000-000000000001"
    ran = run("cancel", "-", stdin=run("jobs", "--limit", "2").out)
    assert (ran.code, ran.out) == (0, "".join(f"{job_id}\tcancelled\n" for job_id in reversed(ids[1:])))
    ran = run("cancel", ids[0], ids[1], unknown, "--json")
    assert ran.code == 1
    assert [one["outcome"] for one in ran.data] == ["cancelled", "finished", "unknown"]
    assert [one["id"] for one in ran.data] == [ids[0], ids[1], unknown]
    with pytest.raises(InvalidJob, match="leave the others out"):
        cancel("-", ids[0])


def test_nothing_on_standard_input(run: Callable[..., Any]) -> None:
    """It is no mistake."""
    for command in ("enqueue", "cancel"):
        ran = run(command, "-", stdin="")
        assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_showing_several(run: Callable[..., Any], dsn: str) -> None:
    """One after the other; in JSON a list. One that is not there is told, and the others are shown."""
    ids = run("enqueue", "-", "--type", "x", stdin=lines(1, 2)).out.split()
    assert [job["id"] for job in run("show", *ids, "--json").data] == ids
    ran = run("show", ids[0], "00000000-0000-0000-0000-000000000001", ids[1])
    assert (ran.code, [ids[0] in ran.out, ids[1] in ran.out]) == (1, [True, True])
    assert "there is no job 00000000-0000-0000-0000-000000000001" in ran.err
