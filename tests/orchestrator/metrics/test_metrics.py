"""What Prometheus sees: names by its conventions, a dashboard that asks only for them, and a real scrape."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from diffusion.engine import StepReport
from jobs.events import Message, Progress
from jobs.prior_client import GenerateRequest
from jobs.states import State
from orchestrator.metrics import catalogue
from orchestrator.metrics.instruments import Counter, Gauge, Histogram
from orchestrator.metrics.meters import FitMeter, PriorMeter, QueueMeter, meter_shard
from orchestrator.prior.local import load_prior
from orchestrator.runtimes.ray_runtime import RayRuntime

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = DOCS / "cluster" / "grafana_dashboard.json"


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = [entry["query"]["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\bray_dreamkiln_\w+", query))


def series_of(metric) -> set[str]:
    """Names of the metric's time series."""
    name = metric.exported_name
    return {f"{name}_{part}" for part in ("bucket", "sum", "count")} if isinstance(metric, Histogram) else {name}


def test_names_follow_the_conventions_of_prometheus():
    assert len({metric.name for metric in catalogue.METRICS}) == len(catalogue.METRICS) >= 14
    for metric in catalogue.METRICS:
        assert re.fullmatch(r"dreamkiln_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == isinstance(metric, Counter), metric.name
        assert metric.description.endswith(".")
        assert not {"job", "instance", "le"} & set(metric.labels), "Prometheus sets these itself"
        if isinstance(metric, Histogram):
            assert list(metric.buckets) == sorted(set(metric.buckets)) and metric.buckets[0] > 0


def test_the_dashboard_asks_for_all_our_metrics_and_for_no_others():
    known = {series for metric in catalogue.METRICS for series in series_of(metric)}
    asked = set().union(*map(names_in, queries()))
    assert asked <= known
    assert all(series_of(metric) & asked for metric in catalogue.METRICS), "a metric that nobody looks at"
    identifiers = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_the_guide_lists_every_metric_with_its_labels():
    page = (DOCS / "cluster.md").read_text()
    for metric in catalogue.METRICS:
        labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
        assert f"`{metric.exported_name}{labels}`" in page, metric.name


@pytest.fixture
def recorded(monkeypatch):
    """(name, label value) -> what was added or set, in place of Ray's own registry."""
    values: dict[tuple[str, ...], float] = {}

    def add(metric, amount=1.0, **labels):
        key = (metric.name, *labels.values())
        values[key] = values.get(key, 0.0) + amount

    def put(metric, value, **labels):
        values[metric.name, *labels.values()] = value

    monkeypatch.setattr(Counter, "add", add)
    monkeypatch.setattr(Gauge, "set", put)
    return values


def counts(**given: int) -> dict[State, int]:
    return {state: given.get(str(state), 0) for state in State}


def test_jobs_that_ended_before_the_orchestrator_started_do_not_count(recorded):
    meter = QueueMeter()
    meter.update(counts(succeeded=100, queued=3), longest_wait_seconds=7.0)
    assert recorded["dreamkiln_jobs", "queued"] == 3 and recorded["dreamkiln_queue_longest_wait_seconds",] == 7
    assert recorded["dreamkiln_jobs_ended_total", "succeeded"] == 0
    meter.update(counts(succeeded=102, failed=1), longest_wait_seconds=0.0)
    assert recorded["dreamkiln_jobs_ended_total", "succeeded"] == 2 and recorded["dreamkiln_jobs_ended_total", "failed"] == 1
    assert recorded["dreamkiln_jobs", "queued"] == 0


def test_a_resumed_fit_counts_only_the_steps_that_it_makes(recorded):
    meter = FitMeter()
    meter.see([Progress(stage="start", step=1, total=1), Message(text="Continuing from step 25."), fit(25)])
    meter.see([fit(30)])
    meter.see([])
    meter.see([fit(31), Progress(stage="mesh", step=1, total=2)])
    assert recorded["dreamkiln_fit_steps_total",] == 6


def fit(step: int) -> Progress:
    return Progress(stage="fit", step=step, total=100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray opens files at interpreter exit and warns in its own modules
def test_a_real_scrape_holds_every_series_of_the_dashboard(tiny_prior, monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    asked = set().union(*map(names_in, queries()))
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1) as runtime:
        runtime.prior().generate(GenerateRequest(prompts=("a red table",) * 2, seeds=(0, 1), num_steps=3))
        # What takes a long job to happen is measured here by the same meters, in another process of the same Ray.
        queue = QueueMeter()
        queue.update(counts(queued=2), longest_wait_seconds=1.5)
        queue.update(counts(succeeded=2), longest_wait_seconds=0.0)
        FitMeter().see([fit(0), fit(10)])
        meter_shard({"seconds": 12.0, "num_succeeded": 99, "num_failed": 1})
        rare = PriorMeter("rare")
        rare.step(StepReport(out_of_memory=True))
        with pytest.raises(ZeroDivisionError), rare.request("distill"):
            1 / 0  # noqa: B018
        found = scrape(asked, seconds=60)
    assert asked <= {name for name, _ in found}
    prior = ("prior", str(tiny_prior))
    assert total(found, "ray_dreamkiln_prior_weights_bytes", prior) > 10_000
    assert total(found, "ray_dreamkiln_prior_rows_total", prior) == 2 * 2 * 3, "two pictures, guided, three steps"
    assert total(found, "ray_dreamkiln_prior_batch_rows_count", prior) == 3
    assert total(found, "ray_dreamkiln_prior_request_seconds_count", prior) == 1
    assert total(found, "ray_dreamkiln_fit_steps_total") == 10
    assert total(found, "ray_dreamkiln_jobs_ended_total", ("outcome", "succeeded")) == 2
    assert total(found, "ray_dreamkiln_shard_rows_total") == 100


def total(found: dict, name: str, *labels: tuple[str, str]) -> float:
    return sum(value for (series, given), value in found.items() if series == name and set(labels) <= set(given))


def scrape(wanted: set[str], *, seconds: float) -> dict:
    """(series, labels) -> value as Ray's agent exports it, until all that is wanted was there: a gauge is exported once."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + seconds
    found = {}
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found |= {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
        if wanted <= {name for name, _ in found} or time.monotonic() > deadline:
            return found
        time.sleep(0.3)
