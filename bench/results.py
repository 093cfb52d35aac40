"""What a comparison found, kept as JSON, one file a question, and told as a table and as charts. Pure but for reading and writing files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import charts
from bench.peers.catalogue import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FOLDER = Path(__file__).parent
RESULTS, CHARTS = FOLDER / "results", FOLDER / "charts"
LOAD_MAX = 2.5  # a comparison's own load is below this on two cores; the average remembers a minute of it
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

TITLES = {
    "drain": "No-op jobs drained by one worker process",
    "pickup": "From the commit to the handler's start, idle worker",
    "cancel": "From the cancel's call to the running handler's stop",
    "producers": "Jobs enqueued one by one, a worker serving them",
    "backlog": "Jobs started a second, by how many wait",
    "snapshot": "A drain while another session holds a snapshot open",
}

Row = dict[str, Any]  # one peer beside us: see compare.row
Figures = dict[str, Any]


def load(question: str) -> dict[str, Any]:
    """Return what is known of a question, or nothing yet."""
    path = RESULTS / f"{question}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {"question": question, "rows": {}}


def store(question: str, rows: dict[str, Row], machine: dict[str, Any]) -> None:
    """Keep rows: of a peer that was measured again the older one goes."""
    kept = load(question)
    merged = {**kept["rows"], **rows}
    ordered = {peer.name: merged[peer.name] for peer in PEERS if peer.name in merged}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"question": question, "machine": machine, "rows": ordered}, indent=1)
    (RESULTS / f"{question}.json").write_text(text + "\n", encoding="utf-8")


def dig(figures: Figures, path: str) -> float | None:
    """Return a figure by its path, `from_commit.p50_ms`, or None where there is none."""
    found: Any = figures
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return None if found is None else float(found)


def median_of(runs: Iterable[Figures], path: str) -> float | None:
    """Return the median of a figure over runs."""
    values = [value for value in (dig(run, path) for run in runs) if value is not None]
    return statistics.median(values) if values else None


def ratio_of(row: Row, path: str) -> float | None:
    """Return the median of ours over the peer's, pair by pair: what drifts slowly falls out of it."""
    pairs = [(dig(ours, path), dig(peer, path)) for ours, peer in zip(row.get("ours", []), row.get("peer", []), strict=False)]
    ratios = [ours / peer for ours, peer in pairs if ours is not None and peer]
    return statistics.median(ratios) if ratios else None


def all_ours(rows: Iterable[Row]) -> list[Figures]:
    """Return our runs beside every peer, of one commit only: that of the most rows (of two with as many, the one further down)."""
    asked = [row for row in rows if row.get("ours")]
    versions = [row.get("ours_version", "") for row in asked]
    chosen = max(reversed(versions), key=versions.count, default="")
    return [run for row in asked if row.get("ours_version", "") == chosen for run in row["ours"]]


def value_of(result: dict[str, Any], name: str, path: str) -> float | None:
    """Return the median of a queue, ours over all pairs."""
    runs = all_ours(result["rows"].values()) if name == OURS.name else result["rows"].get(name, {}).get("peer", [])
    return median_of(runs, path)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: a queue a line, ours first, with the ratio beside each rate."""
    head = (
        "| queue | drain, jobs/s | ours ÷ it | pick-up from commit, ms p50 / p99 | cancel of a running job, ms from the call p50 / p99 "
        "| enqueue, 8 producers, jobs/s | ours ÷ it | bulk, jobs/s | idle: transactions a minute / MiB |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    names = [OURS.name, *(peer.name for peer in PEERS)]
    return "\n".join([head, *(_line(results, name) for name in names)])


def _line(results: dict[str, dict[str, Any]], name: str) -> str:
    def cell(question: str, *paths: str) -> str:
        row = results[question]["rows"].get(name, {})
        if name != OURS.name and "error" in row:
            return str(row["error"])
        if not (row or (name == OURS.name and results[question]["rows"])):
            return "not taken"
        values = [value_of(results[question], name, path) for path in paths]
        return " / ".join("–" if value is None else charts.number(value) for value in values) if any(values) else "–"

    def ratio(question: str, path: str) -> str:
        found = ratio_of(results[question]["rows"].get(name, {}), path)
        return "–" if found is None else f"{found:.2f} x"

    cells = [
        f"**{name}**" if name == OURS.name else f"{name} {next(peer.version for peer in PEERS if peer.name == name)}",
        cell("drain", "jobs_per_second"),
        ratio("drain", "jobs_per_second"),
        cell("pickup", "from_commit.p50_ms", "from_commit.p99_ms"),
        cell("cancel", "from_call.p50_ms", "from_call.p99_ms"),
        cell("enqueue", "by_producers.8"),
        ratio("enqueue", "by_producers.8"),
        cell("enqueue", "bulk"),
        cell("idle", "transactions_per_minute", "resident_mib"),
    ]
    return "| " + " | ".join(cells) + " |"


def pictures(shown: Sequence[str], folder: str) -> str:
    """Return Markdown for those of the charts that are there; `folder` is theirs, from where the text stands."""
    return "\n\n".join(f"![{TITLES[name]}]({folder}/{name}.svg)" for name in shown if (CHARTS / f"{name}.svg").exists())


def settings_table() -> str:
    """Return a Markdown table of how each queue is set, and of what its numbers buy."""
    lines = [
        "| queue | setting for throughput | where it is documented | what is kept, what a completion is checked against | cancel of a running job |",
        "|---|---|---|---|---|",
    ]
    for peer in (OURS, *PEERS):
        version = "" if peer == OURS else f" {peer.version}"
        lines.append(f"| {peer.name}{version} | {peer.setting} | {peer.source} | {peer.keeps} | {peer.cancel or 'none'} |")
    return "\n".join(lines)


def between_markers(text: str, inside: str) -> str:
    """Return a text with what is between its markers replaced.

    Raises:
        ValueError: the markers are not there, once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and {END}, once each, in order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{inside.strip()}\n{END}{rest.split(END)[1]}"


def draw(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return every chart there are figures for, by file name."""
    drawn: dict[str, Callable[[], str | None]] = {
        "drain": lambda: _bars(results["drain"], "jobs_per_second", None, TITLES["drain"], "jobs/s"),
        "pickup": lambda: _bars(
            results["pickup"], "from_commit.p50_ms", "from_commit.p99_ms",
            TITLES["pickup"], "ms, bar: median, mark: 99th percentile",
        ),
        "cancel": lambda: _bars(
            results["cancel"], "from_call.p50_ms", "from_call.p99_ms",
            TITLES["cancel"], "ms, bar: median, mark: 99th percentile",
        ),
        "producers": lambda: _curves(
            results["enqueue"], "by_producers", TITLES["producers"], "producers at once", "jobs/s", log=True
        ),
        "backlog": lambda: _curves(
            results["backlog"], "by_backlog", TITLES["backlog"], "jobs waiting, no ANALYZE", "jobs/s", log=True
        ),
        "snapshot": lambda: _tenths(results["snapshot"]),
    }  # fmt: skip
    made = {name: draw_it() for name, draw_it in drawn.items()}
    return {f"{name}.svg": text for name, text in made.items() if text is not None}


def taken(found: dict[str, dict[str, Any]]) -> str:
    """Return when the rows were taken, with which command, and of which commits of ours."""
    rows = [row for result in found.values() for row in result["rows"].values()]
    dates = sorted({row["date"] for row in rows if "date" in row})
    commands = {row["command"] for row in rows if "command" in row}
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "never"
    how = f"`{commands.pop()}`" if len(commands) == 1 else "`python -m bench compare --write`, in parts (`--only`, `--peers`)"
    versions = sorted({row["ours_version"] for row in rows if "ours_version" in row})
    return f"{when} with {how}, ours at {' and '.join(versions) or 'no known commit'}"


def disturbed(found: dict[str, dict[str, Any]]) -> str:
    """Return a sentence for the reader if other work was under way when rows were taken, else nothing."""
    loads = [row["load_before"] for result in found.values() for row in result["rows"].values() if "load_before" in row]
    if not loads or max(loads) <= LOAD_MAX:
        return ""
    return (
        f"Other work was under way (load average up to {max(loads):g} before a measurement), which lengthens latencies many times over: "
        "look at the ratios, and take the values again. "
    )


def _subtitle(result: dict[str, Any]) -> str:
    rows = result["rows"].values()
    runs = sorted({len(row["peer"]) for row in rows if row.get("peer")} or {0})
    if any(row.get("quick") for row in rows):
        kind = "a quick look"
    elif runs[-1] == 1:
        kind = "one run"
    else:
        kind = f"medians of {runs[-1]} runs" if runs[0] == runs[-1] else f"medians of {runs[0]} to {runs[-1]} runs"
    dates = sorted({row.get("date", "") for row in rows})
    return f"Each queue at its best setting; {kind}, interleaved; {result.get('machine', {}).get('cores', '?')} shared cores; {dates[-1] if dates else ''}"


def _bars(result: dict[str, Any], path: str, mark: str | None, title: str, axis: str) -> str | None:
    rows, absent = [], []
    for name in (OURS.name, *result["rows"]):
        value = value_of(result, name, path)
        marked = None if mark is None else value_of(result, name, mark)
        if value is not None:
            note = charts.number(value) if marked is None else f"{charts.number(value)} / {charts.number(marked)}"
            # Bars of different minutes: the ratio of the pairs is what counts.
            ratio = ratio_of(result["rows"].get(name, {}), path) if marked is None else None
            note = note if ratio is None else f"{note} (ours: {ratio:.2f} x)"
            rows.append(charts.Bar(name=name, value=value, mark=marked, note=note, ours=name == OURS.name))
        else:
            absent.append(charts.Bar(name=name, value=None, note=str(result["rows"].get(name, {}).get("error", ""))[:60]))
    if not rows:
        return None
    # The best first: the longest bar of a rate, the shortest of a latency.
    rows.sort(key=lambda row: row.value or 0.0, reverse=mark is None)
    return charts.bars(title, _subtitle(result), axis, [*rows, *absent], log=mark is not None)


def _points(result: dict[str, Any], name: str, path: str) -> list[tuple[float, float]]:
    runs = all_ours(result["rows"].values()) if name == OURS.name else result["rows"][name].get("peer", [])
    keys = sorted({key for run in runs for key in run.get(path, {})}, key=float)
    values = [(float(key), median_of(runs, f"{path}.{key}")) for key in keys]
    return [(key, value) for key, value in values if value is not None]


def _curves(result: dict[str, Any], path: str, title: str, across: str, up: str, *, log: bool) -> str | None:
    series = [
        charts.Line(name=name, points=points, ours=name == OURS.name)
        for name in (OURS.name, *result["rows"])
        if len(points := _points(result, name, path)) > 1
    ]
    return charts.lines(title, _subtitle(result), across, up, series, log_across=True, log_up=log) if series else None


def _tenths(result: dict[str, Any]) -> str | None:
    """Draw each queue's rate by tenth, as a share of its own first tenth: queues differ by orders of magnitude in rate."""
    series = []
    for name in (OURS.name, *result["rows"]):
        runs = all_ours(result["rows"].values()) if name == OURS.name else result["rows"][name].get("peer", [])
        tenths = [run["by_tenth"] for run in runs if len(run.get("by_tenth", [])) == 10]
        if tenths:
            medians = [statistics.median(column) for column in zip(*tenths, strict=True)]
            points = [(float(index + 1), rate / medians[0]) for index, rate in enumerate(medians)]
            series.append(charts.Line(name=name, points=points, ours=name == OURS.name))
    title = TITLES["snapshot"]
    up = "rate as a share of the first tenth's"
    return charts.lines(title, _subtitle(result), "tenth of the drain", up, series) if series else None


def write(questions: Sequence[str], readmes: Sequence[tuple[Path, Callable[[dict[str, dict[str, Any]]], str]]]) -> None:
    """Draw the charts and rewrite the tables from what is kept."""
    results = {question: load(question) for question in questions}
    CHARTS.mkdir(exist_ok=True)
    for name, text in draw(results).items():
        (CHARTS / name).write_text(text, encoding="utf-8")
    for path, tell in readmes:
        path.write_text(between_markers(path.read_text(encoding="utf-8"), tell(results)), encoding="utf-8")
