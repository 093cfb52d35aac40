"""What a comparison tells: medians, ratios of pairs, tables between markers; and what is read from a run's notes."""

from __future__ import annotations

from pathlib import Path

import psycopg.conninfo
import pytest

from bench.peers.measure import as_url, rates_by_tenth, starts
from bench.peers.protocol import Heard, Notes
from bench.results import BEGIN, END, between_markers, disturbed, ratio_of, table, value_of
from bench.support import percentile


def _drained(ours: list[float], peer: list[float]) -> dict[str, object]:
    return {"ours": [{"jobs_per_second": rate} for rate in ours], "peer": [{"jobs_per_second": rate} for rate in peer]}


def test_ratio_on_a_machine_that_drifts() -> None:
    """The ratio is that of the pairs, so a machine that slows down by half between pairs does not change it."""
    assert ratio_of(_drained([100, 50, 25], [50, 25, 12.5]), "jobs_per_second") == 2.0
    assert ratio_of({"error": "did not install"}, "jobs_per_second") is None


def test_ours_is_the_median_beside_all_peers() -> None:
    """Our figure takes in our runs beside every peer, a peer's only its own."""
    result = {"rows": {"pgqueuer": _drained([10, 30], [7, 9]), "oban": _drained([20], [1])}}
    assert value_of(result, "pgnotifyq", "jobs_per_second") == 20
    assert value_of(result, "pgqueuer", "jobs_per_second") == 8
    assert value_of(result, "chancy", "jobs_per_second") is None


def test_ours_of_two_commits() -> None:
    """Runs of different commits of ours are not put into one median."""
    result = {
        "rows": {
            "pgqueuer": {**_drained([40], [7]), "ours_version": "new"},
            "oban": {**_drained([44], [3]), "ours_version": "new"},
            "saq": {**_drained([10], [1]), "ours_version": "old"},
        }
    }
    assert value_of(result, "pgnotifyq", "jobs_per_second") == 42


def test_peer_that_does_not_run_is_in_the_table() -> None:
    """A queue that failed is told of with its reason, not dropped."""
    empty: dict[str, dict[str, object]] = {name: {"rows": {}} for name in ("pickup", "cancel", "enqueue", "idle")}
    told = table({**empty, "drain": {"rows": {"oban": {"error": "did not install: needs Python 3.12"}}}})
    assert next(line for line in told.splitlines() if line.startswith("| oban")).count("did not install: needs Python 3.12") == 1
    assert "not taken" in next(line for line in told.splitlines() if line.startswith("| saq"))


def test_machine_that_did_something_else() -> None:
    """Figures taken beside other work are told of as such, those of a quiet machine and those of before loads were kept are not."""
    assert "up to 8.4" in disturbed({"pickup": {"rows": {"oban": {"load_before": 8.4}, "saq": {"load_before": 0.1}}}})
    assert not disturbed({"pickup": {"rows": {"oban": {"load_before": 1.9}, "saq": {}}}})


def test_text_between_markers() -> None:
    """Only what is between the markers changes; a file without them, or with two, is refused."""
    assert between_markers(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    for wrong in ("none", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(ValueError, match="once each"):
            between_markers(wrong, "new")


def test_jobs_counted_by_several_processes(tmp_path: Path) -> None:
    """The starts of all processes add up, the first is noted at once and then every thousandth, however large the batches."""
    path = str(tmp_path / "notes")
    one, other = Notes(path), Notes(path)
    for _ in range(2500):
        one.count()
    other.count(1000)
    other.count(1000)
    one.close()
    other.close()
    heard = Heard(path)
    heard.look()
    points = starts(heard)
    assert points[0][0] == 1
    assert points[-1][0] == 2000 + 2000
    assert len(points) == 3 + 2


def test_note_that_is_half_written(tmp_path: Path) -> None:
    """A line is read when it is whole."""
    path = tmp_path / "notes"
    path.write_text("start 1 5.0\nsta", encoding="ascii")
    heard = Heard(str(path))
    heard.look()
    with path.open("a", encoding="ascii") as more:
        more.write("rt 2 6.5\n")
    heard.look()
    assert heard.when("start", 1) == 5.0
    assert heard.when("start", 2) == 6.5
    assert heard.when("stop", 1) is None


def test_rates_by_tenth() -> None:
    """A drain that halves its rate in the middle has ten rates that say so."""
    points = [(done, done / 1000 if done <= 5000 else 5 + (done - 5000) / 500) for done in range(0, 10_001, 1000)]
    assert rates_by_tenth(points, 10_000) == pytest.approx([1000] * 5 + [500] * 5)


@pytest.mark.parametrize(
    "dsn", ["host=/run/pg port=5433 user=postgres dbname=bench", "host=db.example port=5432 user=a@b password=p/w dbname=bench"]
)
def test_address_as_a_url(dsn: str) -> None:
    """The URL says what the connection string said."""
    fields = psycopg.conninfo.conninfo_to_dict(dsn)
    assert psycopg.conninfo.conninfo_to_dict(as_url(dsn)) == fields


def test_percentile() -> None:
    """The value at a share of the way through the sorted values; of one value, that one."""
    assert percentile(range(100), 0.99) == 99
    assert percentile([3.0], 0.5) == 3.0
