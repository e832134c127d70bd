"""Prometheus itself on our metrics, alert rules and dashboard: what is shipped parses, fires, and shows something true."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rustosd.health import EXPECTED_DROPS
from tests.peers.conftest import V4, V6, Peer, url

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "systemd" / "prometheus"
RULES = (SHIPPED / "rustosd.rules.yml").read_text()
DASHBOARD = json.loads((SHIPPED / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PATIENCE_S = 90
_GIVEN_BY_PROMETHEUS = {"job", "instance"}
_SELECTOR = re.compile(r"\b((?:rustos|process)_[a-z_]+)(?:\{([^}]*)\})?")


def tool(name: str) -> str:
    """A program of Prometheus; skips the test where there is none."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:{ROOT}/build/prometheus/usr/bin")
    if found is None:
        pytest.skip(f"needs {name}: scripts/test fetches it")
    return found


def promtool(*arguments: str, **options: Any) -> str:
    done = subprocess.run([tool("promtool"), *arguments], cwd=SHIPPED, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions() -> list[str]:
    """Every PromQL expression of the rules and the dashboard."""
    alerts = re.findall(r"^ +expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", RULES, re.MULTILINE)
    return [block or line for block, line in alerts] + [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("how", [(url(V4, "/metrics"),), (url(V6, "/metrics"),), ("http://127.0.0.1:9477/metrics",), ()],
                         ids=["stack-v4", "stack-v6", "kernel", "unix"])
def test_promtool_has_nothing_to_say_about_the_metrics(peer: Peer, how: tuple[str, ...]) -> None:
    where = how or ("--unix-socket", str(peer.control.with_name("metrics.sock")), "http://any/metrics")
    text = peer.netns.run("curl", "-sf", *where).stdout
    assert promtool("check", "metrics", input=text) == ""
    assert 'rustos_nic_rx_dropped_total{nic="rustos0"}' in text and "rustos_pump_turn_seconds_bucket" in text


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "rustosd.rules.yml")
    assert "SUCCESS" in promtool("test", "rules", "rustosd.rules_test.yml")


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES)
    cases = re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?", (SHIPPED / "rustosd.rules_test.yml").read_text())
    assert sorted(cases) == sorted([(alert, "") for alert in alerts] + [(alert, " []") for alert in alerts])
    assert len(alerts) == len(set(alerts)) == RULES.count("advice:") == RULES.count("summary:") == RULES.count("severity:")


def test_rules_and_health_expect_the_same_drops() -> None:
    (excluded,) = re.findall(r'rustos_frames_ended_total\{verdict!~"([^"]*)"\}', RULES)
    assert set(excluded.split("|")) == EXPECTED_DROPS


def test_every_expression_names_what_there_is(peer: Peer) -> None:
    """Without Prometheus: each metric exists, with the labels that are asked for."""
    peer.netns.run("curl", "-sf", url(V4, "/healthz"))
    text = peer.netns.run("curl", "-sf", "http://127.0.0.1:9477/metrics").stdout
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    assert len(expressions()) > 40
    for expression in expressions():
        selectors = _SELECTOR.findall(expression)
        assert selectors or expression.startswith("up{"), expression
        grouped = set(re.split(r", ?", ",".join(re.findall(r"by \(([^)]*)\)", expression)))) - {""}
        known = _GIVEN_BY_PROMETHEUS.union(*(labels[name] for name, _ in selectors if name in labels))
        assert grouped <= known, expression
        for name, matchers in selectors:
            assert name in labels, f"{name} is no metric of ours"
            assert set(re.findall(r"(\w+)[!=]~?=?\"", matchers)) <= labels[name] | _GIVEN_BY_PROMETHEUS, expression


def test_the_dashboard_is_in_order() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
        assert all("$instance" in target["expr"] for target in panel["targets"])


class Prometheus:
    """A server in the daemon's namespace, with the shipped rules, that scrapes every second."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer = peer
        shutil.copy(SHIPPED / "rustosd.rules.yml", folder)
        fragment = (SHIPPED / "prometheus.yml").read_text().replace("scrape_interval: 15s", "scrape_interval: 1s")
        (folder / "prometheus.yml").write_text(f"global:\n  evaluation_interval: 1s\n{fragment}")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = peer.netns.popen(
                tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:9090", stdout=log, stderr=log)

    def get(self, path: str) -> Any:
        """The data of the API's answer; None while there is none."""
        answer = self.peer.netns.run("curl", "-s", f"http://127.0.0.1:9090/api/v1/{path}", check=False).stdout
        if not answer.startswith("{"):
            assert self.process.poll() is None, self.log.read_text()
            return None
        document = json.loads(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query that are numbers, with Grafana's variables filled in."""
        filled = expression.replace("$__rate_interval", "30s").replace("$instance", ".*")
        data = self.get(f"query?query={urllib.parse.quote(filled, safe='')}")
        return [sample for sample in data["result"] if sample["value"][1] != "NaN"] if data else []

    def until(self, expression: str) -> list[dict[str, Any]]:
        """What a query returns as soon as that is anything."""
        end = time.monotonic() + PATIENCE_S
        while not (samples := self.query(expression)):
            assert time.monotonic() < end, f"nothing within {PATIENCE_S} s: {expression}"
            self.peer.netns.run("curl", "-sf", "-o", "/dev/null", url(V4, "/bytes/1000000"))
            if "rustos_block" in expression:
                self.peer.ctl("disk", "show", "disk0")      # reads
            time.sleep(0.5)
        return samples

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def prometheus(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(peer, tmp_path_factory.mktemp("prometheus"))
    try:
        running.until('up{job="rustosd"} == 1')
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"].replace(" ", "-"))
def test_each_panel_shows_data(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        samples = prometheus.until(target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in sample["metric"] for sample in samples) or panel["title"] == "Dropped frames"


def test_panels_tell_the_truth(prometheus: Prometheus, peer: Peer) -> None:
    def value(title: str) -> float:
        (panel,) = [panel for panel in PANELS if panel["title"] == title]
        (sample,) = prometheus.until(panel["targets"][0]["expr"])
        return float(sample["value"][1])

    assert value("Interfaces up") == 1
    assert value("TCP connections") == pytest.approx(peer.metrics()["rustos_tcp_connections"], abs=20)
    assert 0 < value("Up for") < 3600
    (sample,) = prometheus.until('rustos_build_info{instance=~".*"}')
    assert sample["metric"]["version"] == peer.ctl("status")["status"]["version"]


def test_prometheus_evaluates_the_rules_and_none_fires(prometheus: Prometheus) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        if all(rule["health"] == "ok" for rule in rules):
            break
        assert time.monotonic() < end, [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules]
        time.sleep(0.5)
    assert len(rules) == RULES.count("- alert:")
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
