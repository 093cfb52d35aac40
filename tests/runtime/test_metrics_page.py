"""docs/metrics.md, docs/grafana.json and docs/alerts.yaml against the series that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pgnotifyq import JobRegistry
from pgnotifyq.model.config import WorkerConfig
from pgnotifyq.model.http_address import HttpAddress
from pgnotifyq.model.outcome import InterruptKind
from pgnotifyq.runtime.metrics import SERIES
from pgnotifyq.runtime.probes import DATABASE_BEATS_MAX, DATABASE_SECONDS_MAX
from tests.pages import DOCS, blocks
from tests.runtime.probing import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.support import Workplace

PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
BOARD: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = BOARD["panels"]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
} | {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}  # fmt: skip
BLOCKS = {block.name: block.text for block in blocks(DOCS / "metrics.md")}
LABELS = {series.name: set(series.labels) for series in SERIES}
# What a scrape has of each.
SAMPLES = {
    name: series.name
    for series in SERIES
    for name in ([series.name + end for end in ("_bucket", "_sum", "_count")] if series.kind == "histogram" else [series.name])
}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)"
)
FROM_PROMETHEUS = {"instance", "job", "le"}


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return the page's table of series: kind and labels by name."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", PAGE, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def names_in(query: str) -> set[str]:
    """Return the series that a query reads."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\b(?:by|ignoring|on|without) \([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    return {name for name in re.findall(r"[a-z_]\w*(?!\w*\s*\()", bare) if "_" in name and not name.startswith("histogram_")}


def labels_in(query: str) -> set[str]:
    """Return the labels that a query names."""
    grouped = re.findall(r"\b(?:by|ignoring|on|without) \(([^)]*)\)", query)
    chosen = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    return {label.strip() for group in grouped for label in group.split(",")} | set(chosen)


def test_every_series_is_documented() -> None:
    """With its kind and its labels, and none that there is not."""
    assert documented() == {series.name: (series.kind, set(series.labels)) for series in SERIES}


@pytest.mark.parametrize("where", QUERIES, ids=str)
def test_queries_read_series_that_there_are(where: str) -> None:
    """Of each panel and each rule; by labels that these have."""
    query = QUERIES[where]
    names = names_in(query)
    assert names and names <= SAMPLES.keys(), names - SAMPLES.keys()
    assert labels_in(query) <= FROM_PROMETHEUS.union(*(LABELS[SAMPLES[name]] for name in names))


def test_reader_of_queries() -> None:
    """The test above sees a name and a label that are wrong."""
    query = 'histogram_quantile(0.9, sum by (le, tenant) (rate(jobs_nonsense_bucket{a_b=~"x_y"}[5m]))) / worker_other'
    assert names_in(query) == {"jobs_nonsense_bucket", "worker_other"}
    assert labels_in(query) == {"le", "tenant", "a_b"}


def test_every_series_is_on_the_dashboard() -> None:
    """Each has a panel; panels have an id and a place of their own."""
    shown = {SAMPLES[name] for panel in PANELS for target in panel["targets"] for name in names_in(target["expr"])}
    assert shown == set(LABELS)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken = [
        (x, y)
        for panel in PANELS
        if (at := panel["gridPos"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(taken)) == len(taken) and max(x for x, _ in taken) < 24


@needs_promtool
def test_queries_are_promql(tmp_path: Path) -> None:
    """Prometheus's own parser reads each, with an interval where Grafana puts one."""
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(QUERIES.values())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", "rules.yaml"], cwd=tmp_path, check=True, capture_output=True, timeout=60)


def test_numbers_that_the_page_says() -> None:
    """They are the code's."""
    config = WorkerConfig()
    assert f"{config.lease_seconds - config.margin_seconds:g} s" in PAGE
    assert f"{config.loop_blocked_seconds:g} s" in PAGE
    assert f"{max(DATABASE_SECONDS_MAX, DATABASE_BEATS_MAX * config.heartbeat_seconds):g} s" in PAGE
    assert all(f"`{kind.value}`" in PAGE for kind in InterruptKind)


def test_program_that_serves_its_own(dsn: str, tmp_path: Path) -> None:
    """The page's program prints what its worker counts, beside the process's own metrics."""
    (tmp_path / "jobs.py").write_text(BLOCKS["jobs.py"])
    (tmp_path / "own.py").write_text(BLOCKS["own"] + f"\ntrio.run(main, {dsn!r})\n")
    ran = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert "worker_concurrency 10.0" in ran.stdout and "python_info" in ran.stdout


@needs_promtool
def test_scrapes_of_several_processes(tmp_path: Path) -> None:
    """Prometheus reads the page's part of its configuration; the ports are those of `--processes 4`."""
    text = BLOCKS["prometheus.yml"]
    (tmp_path / "prometheus.yml").write_text(text)
    subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    first = HttpAddress.read("worker-1:9100")
    assert scrape["static_configs"][0]["targets"] == [str(first.nth(index)) for index in range(4)]


async def test_probes_of_a_manifest(place: Workplace) -> None:
    """Each asks a path that a worker answers, at the port that the page's worker has."""
    manifest = yaml.safe_load(BLOCKS["manifest"])
    assert f"--http 0.0.0.0:{manifest['ports'][0]['containerPort']}" in PAGE
    worker = await place.start(JobRegistry(), http="127.0.0.1:0")
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = manifest[name]
        assert probe["httpGet"]["port"] == manifest["ports"][0]["name"]
        await until(worker, probe["httpGet"]["path"], lambda answer: answer.status == 200)
    assert manifest["livenessProbe"]["httpGet"]["path"] == "/live"
