"""docs/deploying.md: each unit, image and manifest is parsed, agrees with the worker's own deadlines, and its command runs."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest
import yaml

from pgnotifyq import WorkerConfig
from pgnotifyq.cli.ending import LAST_WORDS_SECONDS, PATIENCE_SECONDS
from pgnotifyq.embedded import _free_port
from tests.cli.test_systemd import Manager
from tests.pages import DOCS, blocks, named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = DOCS / "deploying.md"
BLOCKS = named(PAGE)
JOBS = next(block.text for block in blocks(PAGE) if block.name == "jobs.py")
WAIT_SECONDS = 60.0


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


def options(arguments: list[str]) -> dict[str, str]:
    """Return the options of a command, whether written `--a b` or `--a=b`."""
    found: dict[str, str] = {}
    for argument in " ".join(arguments).replace("=", " ").split(" --")[1:]:
        name, _, value = argument.partition(" ")
        found[f"--{name}"] = value
    return found


def longest_end(given: dict[str, str]) -> float:
    """Return how many seconds a worker may take from SIGTERM to its end, at the most."""
    config = WorkerConfig(shutdown_seconds=float(given["--shutdown-seconds"]), grace_seconds=float(given["--grace-seconds"]))
    return config.shutdown_seconds + config.grace_seconds + PATIENCE_SECONDS + LAST_WORDS_SECONDS


def start(command: list[str], folder: Path, dsn: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a worker's command with this environment's Python."""
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PGNOTIFYQ_DSN": dsn, **environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_until(dsn: str, condition: str) -> None:
    """Wait until a condition in the database holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    with psycopg.connect(dsn, autocommit=True) as session:
        while session.execute(f"select {condition}".encode()).fetchone() != (True,):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(BLOCKS["shop-worker.service"])
    return parser["Service"]


def test_what_the_page_says_of_an_end() -> None:
    """It is what the code takes."""
    assert PATIENCE_SECONDS + LAST_WORDS_SECONDS == 12
    assert "`--grace-seconds` + 12**" in PAGE.read_text()


def test_unit_is_one(shop: Path) -> None:
    """As systemd itself reads it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = BLOCKS["shop-worker.service"].replace("/srv/shop/.venv/bin/python", sys.executable)
    text = text.replace("/srv/shop", str(shop)).replace("User=shop", "User=root")
    unit = shop / "shop-worker.service"
    unit.write_text(text)
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, [line for line in ran.stderr.splitlines() if "shop-worker" in line]) == (0, [])


def test_unit_runs(service: configparser.SectionProxy, shop: Path, dsn: str) -> None:
    """Its command tells that it is ready when all processes are, feeds the watchdog, and ends in time."""
    command = shlex.split(service["ExecStart"])
    given = options(command)
    assert longest_end(given) <= float(service["TimeoutStopSec"])
    watchdog_seconds = float(service["WatchdogSec"])
    config = WorkerConfig()
    assert watchdog_seconds > config.lease_seconds - config.margin_seconds
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    manager = Manager(str(shop / "notify"))
    told = {"NOTIFY_SOCKET": manager.socket.getsockname(), "WATCHDOG_USEC": f"{watchdog_seconds * 1e6:.0f}"}
    worker = start([sys.executable, *command[1:]], shop, dsn, **told)
    try:
        manager.until(lambda told: "READY=1" in told)
        wait_until(dsn, f"count(*) = {given['--processes']} from pgnotifyq.worker_heartbeats where has_session")
        assert "WATCHDOG=1" in manager.told
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_SECONDS) == 0
        manager.until(lambda told: "STOPPING=1" in told)
    finally:
        worker.kill()
        worker.wait()
        manager.socket.close()


def instructions() -> dict[str, str]:
    """Return the Dockerfile's instructions, the last of each kind."""
    return dict(line.split(" ", 1) for line in BLOCKS["Dockerfile"].splitlines() if line)


def test_image_as_the_first_process(shop: Path, dsn: str) -> None:
    """The command of the image, as process 1 of a namespace of its own: SIGTERM lets its job finish, and it ends with 0."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no process namespace can be made here")
    image = instructions()
    command = [*json.loads(image["ENTRYPOINT"]), *json.loads(image["CMD"])]
    assert (image["STOPSIGNAL"], command[0]) == ("SIGTERM", "python")
    (shop / "jobs.py").write_text(JOBS.replace("return", "import trio; await trio.sleep(1.0)\n    return"))
    outside = start(["unshare", "--pid", "--fork", "--kill-child", sys.executable, *command[1:]], shop, dsn)
    try:
        wait_until(dsn, "count(*) = 1 from pgnotifyq.worker_heartbeats where has_session and pid = 1")
        wait_until(dsn, """pgnotifyq.enqueue('greet', '{"name": "Ann"}') is not null""")
        wait_until(dsn, "bool_and(status = 'running') from pgnotifyq.jobs")
        (first,) = psutil.Process(outside.pid).children()
        first.send_signal(signal.SIGTERM)
        assert outside.wait(WAIT_SECONDS) == 0
        wait_until(dsn, "bool_and(status = 'completed') from pgnotifyq.jobs")
    finally:
        outside.kill()
        outside.wait()


def test_image_that_is_told_to_end_before_it_has_started(shop: Path, dsn: str) -> None:
    """The first process of a container is not ended by a signal's default, and ends all the same."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no process namespace can be made here")
    (shop / "jobs.py").write_text(JOBS)
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        sys.executable,
        "-m",
        "pgnotifyq",
        "worker",
        "--app",
        "jobs:registry",
    ]
    with psycopg.connect(dsn) as session:
        session.execute("lock table pgnotifyq.worker_heartbeats in access exclusive mode")
        outside = start(command, shop, dsn)
        try:
            waits = "exists (select from pg_stat_activity where wait_event_type = 'Lock' and application_name like 'pgnotifyq%')"
            wait_until(dsn, waits)
            (first,) = psutil.Process(outside.pid).children()
            first.send_signal(signal.SIGTERM)
            assert outside.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
        finally:
            outside.kill()
            outside.wait()


def test_compose_waits_long_enough() -> None:
    """For a worker with the default deadlines, and somebody reaps what handlers leave behind."""
    (service,) = yaml.safe_load(BLOCKS["compose.yaml"])["services"].values()
    config = WorkerConfig()
    given = {"--shutdown-seconds": str(config.shutdown_seconds), "--grace-seconds": str(config.grace_seconds)}
    assert float(service["stop_grace_period"].removesuffix("s")) >= longest_end(given)
    assert service["init"] is True


@pytest.fixture
def pod() -> dict[str, Any]:
    _, deployment = yaml.safe_load_all(BLOCKS["kubernetes.yaml"])
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def test_manifest_agrees_with_the_worker(pod: dict[str, Any]) -> None:
    """Grace, ports and probes; and no pod goes before its successor is ready."""
    job, deployment = yaml.safe_load_all(BLOCKS["kubernetes.yaml"])
    (migrates,) = job["spec"]["template"]["spec"]["containers"]
    (container,) = pod["containers"]
    assert migrates["image"] == container["image"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    given = options(container["args"])
    assert pod["terminationGracePeriodSeconds"] >= longest_end(given)
    (port,) = container["ports"]
    assert given["--http"].endswith(f":{port['containerPort']}")
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/ready"}
    assert {container[name]["httpGet"]["port"] for name in paths} == {port["name"]}


def commands() -> Iterator[list[str]]:
    """Yield every worker's command on the page."""
    yield instructions_of_unit()
    yield json.loads(instructions()["CMD"])
    yield list(yaml.safe_load_all(BLOCKS["kubernetes.yaml"]))[1]["spec"]["template"]["spec"]["containers"][0]["args"]


def instructions_of_unit() -> list[str]:
    """Return the arguments of the unit's command."""
    (line,) = re.findall(r"^ExecStart=(.*)$", BLOCKS["shop-worker.service"], re.MULTILINE)
    return shlex.split(line)[3:]


def test_options_are_known() -> None:
    """Each is one that the worker has."""
    shown = subprocess.run(
        [sys.executable, "-m", "pgnotifyq", "worker", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    for command in commands():
        assert command[0] == "worker"
        assert [name for name in options(command) if name not in shown] == []


def test_manifest_runs(pod: dict[str, Any], shop: Path, dsn: str) -> None:
    """Its arguments start a worker whose probes are answered; with several processes, each has a port of its own."""
    (container,) = pod["containers"]
    port = _free_port()
    arguments = [argument.replace("0.0.0.0:9100", f"127.0.0.1:{port}") for argument in container["args"]]
    for processes in (1, 2):
        worker = start([sys.executable, "-m", "pgnotifyq", *arguments, f"--processes={processes}"], shop, dsn)
        try:
            wait_until(dsn, f"count(*) = {processes} from pgnotifyq.worker_heartbeats where has_session")
            for number in range(processes):
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    path = container[probe]["httpGet"]["path"]
                    wait_for_200(f"http://127.0.0.1:{port + number}{path}")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_SECONDS) == 0
        finally:
            worker.kill()
            worker.wait()


def wait_for_200(url: str) -> None:
    """Ask until the answer is that all is well."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, url
        time.sleep(0.05)
