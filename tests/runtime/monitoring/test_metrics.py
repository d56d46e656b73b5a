"""Metrics as a real Prometheus reads them: promtool on rules and text, a scrape, and an alert that fires."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession
from free_ports import free_port
from prometheus_client import CollectorRegistry, generate_latest

from fakes import listening, wait_for
from runtime.monitoring.metrics import Metrics, Total
from runtime.process.http_server import address, application, serve

CONFIGS = Path(__file__).parents[3] / "configs"
PROMTOOL = shutil.which("promtool")


def exercised() -> Metrics:
    """Every metric with a value, as after some ticks."""
    m = Metrics(CollectorRegistry(), agent="demo", version="0.1.0")
    m.tick_seconds.observe(0.02)
    m.encoder_seconds.labels("vision").observe(0.004)
    m.period_seconds.set(0.1)
    m.observe_ages({"front": 0.05, "room": 3.0}, frozenset({"room", "orders"}))
    m.observe_acted({"front": 0.05, "joints": 0.01}, frozenset({"front"}), 0.02)
    m.observe_totals({"head": {"stale": 3}, "": {"lost": 1}}, {"learner": 1}, {"agent_lost": 1})
    m.observe_health({"experience": {"drops": {"disk": 2}}})
    m.drops.labels("front", "backlog").inc()
    m.commands.labels("head", "policy").inc()
    m.observe_gate(armed=True, stopped=False, mode="assist")
    m.observe_learner(
        {"state": "training", "updates": 40, "loss": {"q": 0.5}, "q": 2.0, "buffer": 100, "reward_mean": 0.3}
    )
    for counter in (m.overruns, m.skipped, m.rewards, m.promotions, m.rollbacks, m.reconnects):
        counter.inc()
    m.rejections.labels("ope").inc()
    m.mqtt_connected.set(1)
    m.observe_refused({"reward": 1})
    m.observe_health({"process": {"tasks": 14, "threads": 9}, "learner": {"state": "training", "updates": 40}})
    return m


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_figures_arrive_under_their_names_in_base_units() -> None:
    m = exercised()
    assert value(m, "reflexd_tick_seconds_sum") == 0.02
    assert value(m, "reflexd_stream_stale", stream="room") == 1
    assert value(m, "reflexd_stream_stale", stream="orders") == 1, "a stream that never spoke is stale too"
    assert value(m, "reflexd_stream_stale", stream="front") == 0
    assert value(m, "reflexd_action_input_age_seconds_count", stream="front") == 1
    assert value(m, "reflexd_action_input_age_seconds_sum", stream="front") == pytest.approx(0.07)
    assert value(m, "reflexd_sensor_to_command_seconds_sum", stream="front") == pytest.approx(0.07)
    assert value(m, "reflexd_sensor_to_command_seconds_count", stream="joints") is None, "it was used before"
    assert value(m, "reflexd_tasks") == 14
    assert [value(m, "reflexd_mode", mode=mode) for mode in ("shadow", "assist", "autonomous")] == [0, 1, 0]
    assert value(m, "reflexd_learner_updates_total") == 40
    assert value(m, "reflexd_learner_loss", part="q") == 0.5
    assert value(m, "reflexd_build_info", agent="demo", version="0.1.0") == 1


def test_a_learner_that_starts_again_does_not_count_backwards() -> None:
    m = exercised()
    m.observe_learner({"state": "training", "updates": 10, "loss": 0.25})
    assert value(m, "reflexd_learner_updates_total") == 50
    assert value(m, "reflexd_learner_loss", part="total") == 0.25
    m.observe_learner({"state": "dead"})
    assert value(m, "reflexd_learner_up") == 0
    total = Total(m.promotions)
    total.set(0)
    assert value(m, "reflexd_promotions_total") == 1


def test_totals_of_health_and_events_are_counted_once() -> None:
    m = Metrics(CollectorRegistry(), agent="demo", version="0.1.0")
    for overruns, dropped in ((2, 5), (3, 9)):
        m.observe_health(
            {
                "tick": {"overruns": overruns, "skipped": 1},
                "streams": {"front": {"drops": {"backlog": dropped}}},
                "feedback": {"reward": 7, "reward_clipped": 2, "reward_malformed": 3, "label_unknown_task": 1},
                "learner": {"state": "training", "updates": 10},
            }
        )
    m.observe_link(connected=True, connects=3)
    for kind, data in (
        ("policy_promoted", {}),
        ("policy_rolled_back", {}),
        ("policy_rejected", {"step": "ope"}),
        ("armed", {}),
    ):
        m.observe_event(kind, data)
    assert value(m, "reflexd_tick_overruns_total") == 3
    assert value(m, "reflexd_ticks_skipped_total") == 1
    assert value(m, "reflexd_stream_drops_total", stream="front", cause="backlog") == 9
    assert value(m, "reflexd_rewards_total") == 7
    assert value(m, "reflexd_learner_updates_total") == 10
    assert value(m, "reflexd_mqtt_reconnects_total") == 2
    assert value(m, "reflexd_rejections_total", step="ope") == 1
    assert value(m, "reflexd_messages_refused_total", kind="reward", cause="malformed") == 3
    assert value(m, "reflexd_messages_refused_total", kind="label", cause="unknown_task") == 1
    assert value(m, "reflexd_messages_refused_total", kind="reward", cause="clipped") is None, "it was taken"
    assert value(m, "reflexd_promotions_total") == value(m, "reflexd_rollbacks_total") == 1


def test_the_supervisors_totals_are_counted_once_and_survive_a_new_agent() -> None:
    m = Metrics(CollectorRegistry(), agent="demo", version="0.1.0")
    for stale in (3, 3, 5):
        m.observe_totals({"head": {"stale": stale}}, {"agent": 1}, {"agent_lost": 1, "disarmed": stale})
    assert value(m, "reflexd_gate_refusals_total", actuator="head", rule="stale") == 5
    assert value(m, "reflexd_child_restarts_total", child="agent") == 1
    assert value(m, "reflexd_gate_events_total", type="agent_lost") == 1
    assert value(m, "reflexd_gate_events_total", type="disarmed") == 5


def test_refused_experience_is_counted_by_cause() -> None:
    m = Metrics(CollectorRegistry(), agent="demo", version="0.1.0")
    for full in (2, 3):
        m.observe_health({"experience": {"drops": {"full": full, "disk": 1}}})
    assert value(m, "reflexd_experience_refused_total", cause="full") == 3
    assert value(m, "reflexd_experience_refused_total", cause="disk") == 1


def test_every_metric_has_the_prefix_and_a_base_unit() -> None:
    text = generate_latest(exercised().registry).decode()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert all(name.startswith(("reflexd_", "process_")) for name in names)
    assert not [name for name in names if re.search(r"_(ms|milliseconds|mb|minutes)(_|$)", name)]


def known_names() -> set[str]:
    text = generate_latest(exercised().registry).decode()
    return set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))


def test_rules_and_dashboard_are_made_of_metrics_that_exist() -> None:
    board = json.loads((CONFIGS / "grafana/dashboards/reflexd.json").read_text())
    expressions = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    expressions.append((CONFIGS / "prometheus/reflexd.rules.yml").read_text())
    used = set(re.findall(r"\b(?:reflexd|process)_[a-z_]+\b", "\n".join(expressions)))
    assert len(used) > 20
    assert used <= known_names()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert board["templating"]["list"][0]["type"] == "datasource", "whoever imports the board chooses"
    requested = [source for panel in board["panels"] for source in (panel, *panel["targets"])]
    assert {source["datasource"]["uid"] for source in requested} == {"${datasource}"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: apt-get install prometheus")
def test_promtool_takes_rules_scrape_settings_and_the_live_text() -> None:
    assert PROMTOOL
    checked = subprocess.run(
        [PROMTOOL, "check", "config", str(CONFIGS / "prometheus/prometheus.yml")], check=False, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    text = generate_latest(exercised().registry)
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@asynccontextmanager
async def served(metrics: Metrics, reasons: list[str]) -> AsyncIterator[str]:
    async with serve(application(metrics.registry, lambda: reasons), "127.0.0.1:0") as port:
        yield f"http://127.0.0.1:{port}"


async def test_livez_readyz_and_metrics_answer() -> None:
    reasons: list[str] = []
    async with served(exercised(), reasons) as url, ClientSession() as http:
        assert (await http.get(f"{url}/livez")).status == 200
        ready = await http.get(f"{url}/readyz")
        assert (ready.status, await ready.text()) == (200, "ready\n")
        reasons.append("stream front is stale")
        ready = await http.get(f"{url}/readyz")
        assert (ready.status, await ready.text()) == (503, "stream front is stale\n")
        plain = await http.get(f"{url}/metrics")
        assert plain.headers["Content-Type"].startswith("text/plain")
        open_metrics = await http.get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"})
        assert (await open_metrics.text()).endswith("# EOF\n")
        assert (await http.post(f"{url}/metrics", data=b"x" * 10_000)).status == 405
        assert (await http.get(f"{url}/")).status == 404


def test_addresses_are_read_with_brackets_and_without() -> None:
    assert address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert address("[::1]:80") == ("::1", 80)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A real Prometheus with the project's rules at a quicker pace; its port, and the port it scrapes."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    port, target = free_port(), free_port()
    scrape = (CONFIGS / "prometheus/prometheus.yml").read_text().replace("127.0.0.1:9464", f"127.0.0.1:{target}")
    (tmp_path / "prometheus.yml").write_text(scrape.replace("5s", "200ms"))
    rules = re.sub(r"for: \d+[sm]", "for: 0s", (CONFIGS / "prometheus/reflexd.rules.yml").read_text())
    (tmp_path / "reflexd.rules.yml").write_text(rules)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: listening(port), "prometheus listening")
        yield port, target
    finally:
        process.kill()
        process.wait(timeout=60)


async def test_a_real_prometheus_scrapes_and_an_alert_fires_when_a_stream_is_unplugged(
    prometheus: tuple[int, int],
) -> None:
    port, target = prometheus
    m = exercised()
    m.observe_ages({"front": 0.05, "room": 0.1, "orders": 1.0}, frozenset())
    async with serve(application(m.registry, list), f"127.0.0.1:{target}"), ClientSession() as http:

        async def until(path: str, wanted: str) -> str:
            async with asyncio.timeout(60):
                while True:
                    try:
                        answer = await http.get(f"http://127.0.0.1:{port}/api/v1/{path}")
                        text = await answer.text()
                    except OSError:
                        text = ""
                    if wanted in text:
                        return text
                    await asyncio.sleep(0.05)

        await until("query?query=reflexd_build_info", '"agent":"demo"')
        assert "ReflexdStreamStale" not in await until("alerts", '"status":"success"')
        m.observe_ages({"front": 0.05, "room": 60.0, "orders": 1.0}, frozenset({"room"}))
        firing = await until("alerts", "ReflexdStreamStale")
        alert = next(
            a for a in json.loads(firing)["data"]["alerts"] if a["labels"]["alertname"] == "ReflexdStreamStale"
        )
        assert (alert["labels"]["stream"], alert["annotations"]["summary"]) == ("room", "stream room is missing")
