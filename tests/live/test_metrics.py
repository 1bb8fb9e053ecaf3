"""`fuseunion status`: how long requests took, what was answered without Python, and all of it for Prometheus."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fuseunion.cli.commands.live import metrics
from fuseunion.engines.status import Latency, State, Status
from fuseunion.mounting.options import EngineChoice
from tests.support.arena import Arena
from tests.support.layers import File

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> tuple[Samples, dict[str, str]]:
    """The samples by name and labels, each of which is there once, and the types of the families."""
    samples: Samples = {}
    types = {}
    for family in text_string_to_metric_families(text):
        types[family.name] = family.type
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples, types


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_of_a_mount(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is in one place of the histogram of its request, whoever gave it."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    lower = arena.lower({'a "quoted\\ na\nme': File(b"x"), "big": File(b"x" * 300_000)})
    with arena.mount(lower, merged='merged "of\\ mine') as mount:
        fd = os.open(mount / "big", os.O_RDWR)
        for _ in range(3):
            os.pwrite(fd, b"y" * 5000, 7)
        os.close(fd)
        for number in range(50):
            assert not (mount / f"absent{number}").exists()
        done = arena.place.fuseunion("status", "--metrics", mount.merged)
        assert (done.returncode, done.stderr) == (0, "")
        samples, types = parsed(done.stdout)
        of_mount = {"merged": str(mount.merged), "pid": str(mount.daemon)}

        def value(name: str, **labels: str) -> float:
            return samples[f"fuseunion_{name}", frozenset({**of_mount, **labels}.items())]

        assert types["fuseunion_request_duration_seconds"] == "histogram"
        assert types["fuseunion_requests"] == types["fuseunion_copy_ups"] == "counter"
        assert value("up") == 1 and value("copy_ups_total") == 1
        for operation in ("lookup", "write"):
            count = value("requests_total", operation=operation)
            assert value("request_duration_seconds_count", operation=operation) == count >= 3
            assert value("request_duration_seconds_bucket", operation=operation, le="+Inf") == count
            buckets = sorted(
                (float(dict(labels)["le"]), number)
                for (name, labels), number in samples.items()
                if name.endswith("_bucket") and ("operation", operation) in labels
            )
            assert [number for _, number in buckets] == sorted(number for _, number in buckets)
            total = value("request_duration_seconds_sum", operation=operation)
            assert 0 < total < 30
            assert sum(bound * 2 for bound, _ in buckets[:-1]) > total / count
        alone = value("requests_answered_by_extension_total", operation="lookup")
        # The first name that is missing makes the directory shared.
        assert alone >= 40 if wire == "1" else alone == 0
        said = arena.place.fuseunion("status", mount.merged).stdout
        assert "    latency   lookup " in said and " on average\n" in said
        assert ("answered without Python" in said) == (wire == "1")
        (report,) = json.loads(arena.place.fuseunion("status", "--json", mount.merged).stdout)["mounts"]
        assert report["latencies"]["write"]["count"] == report["requests"]["write"]
        assert sum(report["latencies"]["lookup"]["at_most"].values()) == report["requests"]["lookup"]


@pytest.mark.actors("user")
def test_two_forms_at_once(arena: Arena) -> None:
    """A mistake is one line."""
    done = arena.place.fuseunion("status", "--json", "--metrics")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fuseunion: --json and --metrics cannot be given together\n"


NASTY = '/a "b"\\c\nd=e,f}{\udcff'


def test_labels_are_escaped() -> None:
    """Whatever is in a path comes back from a parser, but for what is no UTF-8."""
    nasty = Status(EngineChoice.FUSE, NASTY, State.DEAD)
    fine = Status(EngineChoice.KERNEL, "/m", State.LIVE, pid=7)
    samples, _ = parsed(metrics.text([nasty, fine]))
    up = {dict(labels)["merged"]: value for (name, labels), value in samples.items() if name == "fuseunion_up"}
    assert up == {NASTY.replace("\udcff", "\\xff"): 0, "/m": 1}
    assert parsed(metrics.text([]))[0] == {}


def test_latencies() -> None:
    """The bounds of the places, and what is read from them."""
    latency = Latency(1.0, (0, 10, 80, 9, 1))
    assert latency.bounds() == (1e-6, 2e-6, 4e-6, 8e-6, float("inf"))
    assert [latency.quantile(part) for part in (0.1, 0.5, 0.9, 0.99, 1)] == [2e-6, 4e-6, 4e-6, 8e-6, float("inf")]
    assert latency.since(Latency(0.25, (0, 10, 70, 0, 0))) == Latency(0.75, (0, 0, 10, 9, 1))
    assert latency.answers == 100


def test_every_name_is_documented() -> None:
    """docs/live.md lists them."""
    page = Path(__file__).parents[2].joinpath("docs/live.md").read_text()
    for metric in metrics.METRICS:
        assert f"`fuseunion_{metric.name}`" in page
