"""pytest's fixture, in suites as users have them: each is a pytest of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]

SHOP = """
import attrs
import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Resize:
    path: str


@registry.handler
async def resize(payload: Resize) -> str:
    if payload.path == "bad":
        raise ValueError("bad path")
    return payload.path


@registry.handler
def shout(payload: dict) -> str:
    return payload["text"].upper()
"""

PLAIN = """
import pytest
from pgnotifyq.sync import open_client
from shop import Resize, registry, resize


@pytest.mark.parametrize("number", range(4))
def test_alone(pgnotifyq_db, number):
    with open_client(pgnotifyq_db.dsn) as client:
        assert client.jobs() == []
        client.enqueue(resize, Resize(f"{number}.png"), delay_seconds=3600)
        pgnotifyq_db.assert_enqueued(resize, path=f"{number}.png", count=1)
        pgnotifyq_db.refute_enqueued(resize, path="other")
        with pgnotifyq_db.at("2100-01-01"):
            assert pgnotifyq_db.drain(registry).outcomes == {"completed": 1}
        with pytest.raises(ValueError):
            client.enqueue(resize, Resize("bad"))
            pgnotifyq_db.drain(registry)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's suite, without a server given."""
    monkeypatch.delenv("PGNOTIFYQ_DSN", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(shop=SHOP)
    return pytester


@pytest.fixture
def suite_with_server(suite: pytest.Pytester, server_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A user's suite, with a server given; nothing of it is left there."""
    monkeypatch.setenv("PGNOTIFYQ_DSN", server_dsn)
    yield suite
    with psycopg.connect(server_dsn, autocommit=True) as server:
        left = server.execute("select datname from pg_database where datname like 'pgnotifyq\\_test\\_%'").fetchall()
    assert left == []


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run a suite in a process of its own; warnings are errors."""
    return suite.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *arguments)


def test_a_server_of_its_own(suite: pytest.Pytester) -> None:
    """Started on demand: a fresh database a test, read, drained, and its clock set."""
    suite.makepyfile(test_plain=PLAIN)
    run(suite).assert_outcomes(passed=4)


@pytest.mark.parametrize("given", [True, False])
def test_xdist(request: pytest.FixtureRequest, given: bool) -> None:
    """Two workers, on one server that was given, or on a server each: no test sees another's jobs."""
    suite: pytest.Pytester = request.getfixturevalue("suite_with_server" if given else "suite")
    suite.makepyfile(test_plain=PLAIN, test_more=PLAIN)
    run(suite, "-n", "2").assert_outcomes(passed=8)


def test_async_tests(suite_with_server: pytest.Pytester) -> None:
    """Of pytest-trio, and of anyio on both of its backends: what runs jobs is awaited, what looks at them is not."""
    suite_with_server.makepyfile(
        test_async="""
        import pytest
        import pgnotifyq
        from pgnotifyq.testing import run_job
        from shop import Resize, registry, resize


        async def resize_two(db, door):
            async with door.open_client(db.dsn) as client:
                await client.enqueue(resize, Resize("a.png"))
                await client.enqueue("shout", {"text": "hi"})
                db.assert_enqueued(resize, path="a.png")
                drained = await db.drain(registry)
                assert drained.outcomes == {"completed": 2}
                await client.enqueue(resize, Resize("bad"))
                with pytest.raises(ValueError):
                    await db.drain(registry)
                db.assert_enqueued(resize, scheduled=True)


        @pytest.mark.trio
        async def test_trio(pgnotifyq_db):
            await resize_two(pgnotifyq_db, pgnotifyq)
            assert (await run_job(registry, resize, Resize("a"))).result == "a"


        @pytest.mark.anyio
        async def test_anyio(pgnotifyq_db, anyio_backend_name):
            await resize_two(pgnotifyq_db, pgnotifyq.aio if anyio_backend_name == "asyncio" else pgnotifyq)
        """
    )
    run(suite_with_server, "--strict-markers", "-o", "trio_mode=false").assert_outcomes(passed=3)


def test_django(suite_with_server: pytest.Pytester) -> None:
    """Django's TestCase: all in its open transaction, which it rolls back; and TransactionTestCase's like."""
    suite_with_server.makeconftest(
        """
        import django
        import pytest
        from django.conf import settings
        from psycopg.conninfo import conninfo_to_dict


        @pytest.fixture(scope="session", autouse=True)
        def django_database(pgnotifyq_databases):
            parts = conninfo_to_dict(pgnotifyq_databases.take())
            settings.configure(USE_TZ=True, DATABASES={"default": {
                "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
                "HOST": parts["host"], "PORT": parts.get("port", ""), "PASSWORD": parts.get("password", ""),
            }})
            django.setup()
            yield
            from django.db import connection

            connection.close()
            pgnotifyq_databases.give_back(f"dbname={parts['dbname']}")
        """
    )
    suite_with_server.makepyfile(
        test_django="""
        from django.db import connection, IntegrityError, transaction
        from django.test import TestCase
        from pgnotifyq.sync import open_client
        from pgnotifyq.testing import assert_enqueued, at, drain, refute_enqueued
        import pgnotifyq

        registry = pgnotifyq.JobRegistry()


        @registry.handler
        def write(payload: dict, ctx: pgnotifyq.JobContext) -> None:
            ctx.progress(0.5)
            with connection.cursor() as cursor:
                cursor.execute("create table written as select 1 as n")
            if payload:
                with connection.cursor() as cursor:
                    cursor.execute("insert into nowhere values (1)")


        @registry.handler
        def spoil(payload: dict) -> None:
            with transaction.atomic(), transaction.atomic(savepoint=False):
                raise ValueError("spoilt")


        @registry.handler
        def spoil_all(payload: dict) -> None:
            with transaction.atomic(savepoint=False):
                raise ValueError("spoilt")


        @registry.handler
        def own(payload: dict, ctx: pgnotifyq.JobContext) -> None:
            with ctx.django(complete=True, result="own") as mine, mine.cursor() as cursor:
                cursor.execute("create table written as select 1 as n")


        class WriteTest(TestCase):
            def setUp(self):
                parts = connection.settings_dict
                where = f"host={parts['HOST']} port={parts['PORT'] or 5432} user={parts['USER']} dbname={parts['NAME']}"
                self.client_of_jobs = self.enterContext(open_client(where))

            def is_there(self):
                with connection.cursor() as cursor:
                    cursor.execute("select to_regclass('written') is not null")
                    return cursor.fetchone()[0]

            def test_write(self):
                refute_enqueued(write, connection=connection)
                self.client_of_jobs.enqueue(write, {}, delay_seconds=60, connection=connection)
                assert_enqueued(write, connection=connection)
                with at("2100-01-01", connection=connection):
                    drained = drain(registry, connection=connection)
                self.assertEqual(drained.outcomes, {"completed": 1})
                self.assertTrue(self.is_there())
                self.assertEqual(self.client_of_jobs.jobs(), [])

            def test_spoil(self):
                for job_type in ("spoil", "spoil_all", "write"):
                    self.client_of_jobs.enqueue(job_type, {}, connection=connection)
                outcomes = drain(registry, connection=connection, raises=False).outcomes
                self.assertEqual(outcomes, {"retried": 2, "completed": 1})

            def test_own(self):
                self.client_of_jobs.enqueue(own, {}, connection=connection)
                self.assertEqual(drain(registry, connection=connection).outcomes, {"completed": 1})
                self.assertTrue(self.is_there())
                with connection.cursor() as cursor:
                    cursor.execute("select result from pgnotifyq.jobs")
                    self.assertIn("own", cursor.fetchone()[0])

            def test_write_again(self):
                self.assertFalse(self.is_there())
                self.client_of_jobs.enqueue(write, {"broken": True}, connection=connection)
                with self.assertRaises(Exception):
                    drain(registry, connection=connection)
                self.assertFalse(self.is_there())
                assert_enqueued(write, scheduled=True, connection=connection)
        """
    )
    run(suite_with_server).assert_outcomes(passed=4)


def test_what_a_failure_shows(suite_with_server: pytest.Pytester) -> None:
    """What is enqueued instead, and none of our own frames."""
    suite_with_server.makepyfile(
        test_wrong="""
        from pgnotifyq.sync import open_client
        from shop import Resize, resize


        def test_wrong(pgnotifyq_db):
            with open_client(pgnotifyq_db.dsn) as client:
                client.enqueue(resize, Resize("b.png"))
            pgnotifyq_db.assert_enqueued(resize, path="a.png")
        """
    )
    told = run(suite_with_server)
    told.assert_outcomes(failed=1)
    told.stdout.fnmatch_lines(["E*not enqueued: resize with {'path': 'a.png'}", "E*- path: 'b.png', expected 'a.png'"])
    told.stdout.no_fnmatch_line("*enqueued.py*")


def test_the_registry_of_the_ini_file(suite_with_server: pytest.Pytester) -> None:
    """`drain()` needs no handlers then; without them, and with a name that is none, the test is told."""
    suite_with_server.makepyfile(
        test_ini="""
        from pgnotifyq.sync import open_client


        def test_ini(pgnotifyq_db):
            with open_client(pgnotifyq_db.dsn) as client:
                client.enqueue("shout", {"text": "hi"})
                assert pgnotifyq_db.drain().outcomes == {"completed": 1}
                assert [job.result for job in client.jobs()] == ["HI"]
        """
    )
    run(suite_with_server, "-o", "pgnotifyq_registry=shop:registry", "-o", "pythonpath=.").assert_outcomes(passed=1)
    told = run(suite_with_server)
    told.assert_outcomes(failed=1)
    told.stdout.fnmatch_lines(["*drain has no handlers*"])
    told = run(suite_with_server, "-o", "pgnotifyq_registry=shop:nothing", "-o", "pythonpath=.")
    told.stdout.fnmatch_lines(["*is to be package.module:registry*"])


def test_another_schema(suite_with_server: pytest.Pytester) -> None:
    """Of the ini file, everywhere."""
    suite_with_server.makepyfile(
        test_schema="""
        from pgnotifyq.sync import open_client
        from shop import registry


        def test_schema(pgnotifyq_db):
            with open_client(pgnotifyq_db.dsn, schema="jobs") as client:
                client.enqueue("shout", {"text": "hi"})
            pgnotifyq_db.assert_enqueued("shout", text="hi")
            assert pgnotifyq_db.drain(registry).outcomes == {"completed": 1}
        """
    )
    run(suite_with_server, "-o", "pgnotifyq_schema=jobs").assert_outcomes(passed=1)


def test_a_server_that_does_not_answer(suite: pytest.Pytester) -> None:
    """An error of the first test that asks, not a hang."""
    suite.makepyfile(test_plain=PLAIN)
    run(suite, "-o", "pgnotifyq_dsn=host=/nowhere").assert_outcomes(errors=4)


def test_a_suite_that_uses_nothing_of_it(suite: pytest.Pytester) -> None:
    """It imports nothing: neither the package, nor psycopg, nor trio."""
    suite.makepyfile(
        test_nothing="""
        import sys

        def test_nothing(pytestconfig):
            assert "pytest_pgnotifyq" in sys.modules
            for name in ("pgnotifyq", "psycopg", "trio"):
                assert name not in sys.modules, name
        """
    )
    run(suite, "-p", "no:trio", "-p", "no:anyio").assert_outcomes(passed=1)


def test_the_address_for_sqlalchemy(suite_with_server: pytest.Pytester) -> None:
    """`url()` leads to the same database, by each driver."""
    suite_with_server.makepyfile(
        test_url="""
        import asyncio
        import sqlalchemy
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool


        def test_url(pgnotifyq_db):
            statement = sqlalchemy.text("select current_database()")
            name = pgnotifyq_db.connection.info.dbname
            with sqlalchemy.create_engine(pgnotifyq_db.url(), poolclass=NullPool).connect() as connection:
                assert connection.execute(statement).scalar() == name

            async def main():
                async with create_async_engine(pgnotifyq_db.url("asyncpg"), poolclass=NullPool).connect() as connection:
                    assert (await connection.execute(statement)).scalar() == name

            asyncio.run(main())
        """
    )
    run(suite_with_server).assert_outcomes(passed=1)
