"""docs/alerts.yaml: each rule fires on what a real worker says under its fault, and none on what a healthy one says.

A worker is scraped before and under the fault. Prometheus's own promtool is given the two scrapes as a series in time, and judges the rules.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pgnotifyq import EventName, JobRegistry
from tests.pages import DOCS
from tests.proxy import run_proxy
from tests.runtime.probing import ask, parsed, refused, until, value
from tests.runtime.support import PATIENCE_SECONDS, Log, _work

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy import Proxy
    from tests.runtime.probing import Samples
    from tests.runtime.support import Worker, Workplace

Payload = dict[str, Any]
ALERTS = DOCS / "alerts.yaml"
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
# So long each of the two is scraped, every 15 s.
SCRAPES = 40


def registry() -> JobRegistry:
    """Handlers that work, that fail, and that hold the loop until somebody outside has seen it."""
    made = JobRegistry()

    @made.handler()
    async def good(payload: Payload) -> None: ...

    @made.handler(max_attempts=1)
    async def hopeless(payload: Payload) -> None:
        raise ValueError("no hope")

    @made.handler()
    async def hold(payload: Payload) -> None:
        seen = threading.Event()
        threading.Thread(target=_see, args=(payload["address"], seen)).start()
        assert seen.wait(PATIENCE_SECONDS)  # nothing else ends it

    return made


def _see(address: str, seen: threading.Event) -> None:
    if refused(address, "/ready") is not None:
        seen.set()


async def start(place: Workplace, dsn: str | None = None) -> Worker:
    """Start a worker as it comes, with metrics."""
    worker: Worker = await place.nursery.start(partial(_work, registry(), dsn or place.dsn, log=Log(), http="127.0.0.1:0"))
    return worker


async def scrape(worker: Worker) -> Samples:
    """Scrape it."""
    return parsed((await ask(worker, "/metrics")).body)


def judged(folder: Path, before: Samples, after: Samples, expected: dict[str, dict[str, str]], *, steady: bool = True) -> str:
    """Have promtool judge the rules over two scrapes; return what it says against what is expected, nothing if it agrees.

    Args:
        folder: where promtool reads.
        before: what is scraped first, for ten minutes.
        after: what is scraped then, for as long.
        expected: the labels of each alert that must fire at the end, by its name; every other rule must be silent then.
        steady: whether what came after stays as it is; else counters go on growing as they did.
    """
    if stalls(after) > stalls(before):
        # The machine stood still for a second, and the rule is right to say so.
        expected = {**expected, "PgnotifyqLoopHeld": WORKER}
    series = []
    for key in before.keys() | after.keys():
        name, labels = key
        told = ",".join(
            f'{label}="{text}"' for label, text in sorted({**dict(labels), "instance": "w", "job": "pgnotifyq"}.items())
        )
        first, then = before.get(key), after.get(key)
        step = 0.0 if steady or first is None or then is None or "_seconds" not in name else max(then - first, 0.0)
        parts = [f"_x{SCRAPES}" if first is None else f"{first}x{SCRAPES}", "" if then is None else f"{then}+{step}x{SCRAPES}"]
        series.append({"series": f"{name}{{{told}}}", "values": " ".join(parts).strip()})
    (folder / "alerts.yaml").write_text(ALERTS.read_text())
    test = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series,
                "alert_rule_test": [
                    {
                        "eval_time": "15m",
                        "alertname": name,
                        "exp_alerts": [alert(name, expected[name])] if name in expected else [],
                    }
                    for name in RULES
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    assert PROMTOOL is not None
    ran = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def stalls(samples: Samples) -> float:
    """How many beats of the loop were late by more than a second."""
    return value(samples, "worker_loop_lag_seconds_count") - value(samples, "worker_loop_lag_seconds_bucket", le="1.0")


def alert(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return an alert as it must be: the rule's own words, with its labels filled in."""
    annotations = dict(RULES[name]["annotations"])
    for label, text in labels.items():
        annotations = {which: words.replace("{{ $labels." + label + " }}", text) for which, words in annotations.items()}
    return {"exp_labels": {**RULES[name]["labels"], **labels}, "exp_annotations": annotations}


WORKER = {"instance": "w", "job": "pgnotifyq"}


def test_rules_are_sound() -> None:
    """There are five, and each says what to do; promtool finds nothing wrong with them."""
    assert len(RULES) == 5
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in RULES.values())
    if PROMTOOL is not None:
        subprocess.run(
            [PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS)], check=True, capture_output=True, timeout=60
        )


@needs_promtool
async def test_worker_that_is_well(place: Workplace, tmp_path: Path) -> None:
    """No alert."""
    worker = await start(place)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    before = await scrape(worker)
    for _ in range(5):
        job_id = await place.enqueue("good")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert judged(tmp_path, before, await scrape(worker), {}) == ""


@needs_promtool
async def test_jobs_that_die(place: Workplace, tmp_path: Path) -> None:
    """The first dead letter is told, with its job type and queue; and what is not expected is seen."""
    worker = await start(place)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    before = await scrape(worker)
    job_id = await place.enqueue("hopeless")
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    after = await scrape(worker)
    assert judged(tmp_path, before, after, {"PgnotifyqJobsDie": {"job_type": "hopeless", "queue": "default"}}) == ""
    assert "PgnotifyqJobsDie" in judged(tmp_path, before, after, {})


@needs_promtool
async def test_jobs_that_start_late(place: Workplace, tmp_path: Path) -> None:
    """Jobs that were due five minutes ago, again and again."""
    worker = await start(place)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    job_id = await place.enqueue("good")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    before = await scrape(worker)
    async with place.connection.transaction():
        job_id = await place.enqueue("good")
        await place.connection.execute(
            "update pgnotifyq.jobs set created_at = created_at - interval '5 minutes', scheduled_at = scheduled_at - interval '5 minutes'"
            " where id = %s",
            (job_id,),
        )
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    after = await scrape(worker)
    late = {key: number for key, number in after.items() if key[0].startswith("job_commit_to_start")}
    expected = {"PgnotifyqJobsStartLate": {"queue": "default"}}
    assert judged(tmp_path, before, {**before, **late}, expected, steady=False) == ""


@needs_promtool
async def test_listener_that_is_deaf(place: Workplace, tmp_path: Path) -> None:
    """A worker that hears nothing polls, and is told."""
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    cable.drop_notifications()
    worker = await start(place, cable.dsn)
    await worker.log.wait(EventName.LISTENER_POLLING)
    samples = await scrape(worker)
    assert judged(tmp_path, samples, samples, {"PgnotifyqListenerDeaf": WORKER}) == ""


@needs_promtool
async def test_loop_that_is_held(place: Workplace, tmp_path: Path) -> None:
    """Between two scrapes, so that none of them saw it."""
    worker = await start(place)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    before = await scrape(worker)
    job_id = await place.enqueue("hold", payload=f'{{"address": "{worker.handle.http}"}}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    after = await scrape(worker)
    assert value(after, "worker_loop_held_seconds") < 1
    assert value(after, "worker_events_total", event="loop.blocked") == 1
    assert stalls(after) > stalls(before)
    assert judged(tmp_path, before, after, {"PgnotifyqLoopHeld": WORKER}) == ""


@needs_promtool
async def test_database_that_is_away(place: Workplace, tmp_path: Path) -> None:
    """Its connections are cut, and new ones lead nowhere."""
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await start(place, cable.dsn)
    await until(worker, "/ready", lambda answer: answer.status == 200)
    before = await scrape(worker)
    cable.lead_to("host=127.0.0.1 port=1")
    cable.cut()
    await until(worker, "/ready?polling=ok", lambda answer: "database" in answer.failed)
    after = await scrape(worker)
    expected = {"PgnotifyqDatabaseAway": WORKER, "PgnotifyqListenerDeaf": WORKER}
    assert judged(tmp_path, before, after, expected) == ""
    await worker.leave()


def test_alerts_read_series_that_there_are() -> None:
    """See test_metrics_page.py; and no rule reads an id, which is new at each start."""
    assert all("worker_id" not in rule["expr"] for rule in RULES.values())
