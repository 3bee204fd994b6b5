"""Prometheus's and Alertmanager's configuration, read by their own tools. Debian: prometheus, prometheus-alertmanager."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "docker" / "prometheus"
ALERTMANAGER = ROOT / "docker" / "alertmanager"

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool; it comes with Prometheus")
amtool = pytest.mark.skipif(shutil.which("amtool") is None, reason="no amtool; it comes with Alertmanager")


def tool(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_its_configuration():
    """Configuration and rules, and nothing in them is only tolerated. Files of the containers are not looked for."""
    tool("promtool", "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "rules.yml")


@amtool
def test_alertmanager_takes_its_configuration():
    """As it is, and with the example of a receiver in place."""
    tool("amtool", "check-config", ALERTMANAGER / "alertmanager.yml")


@amtool
def test_the_example_of_a_receiver_can_be_used(tmp_path):
    """Without the comment signs it is a receiver that alerts can be sent to."""
    example = (ALERTMANAGER / "alertmanager.yml").read_text()
    for line in ("- name: webhook # and", "  webhook_configs:", "    - url:", "      send_resolved:"):
        assert f"\n  # {line}" in example
        example = example.replace(f"\n  # {line}", f"\n  {line}")
    (tmp_path / "alertmanager.yml").write_text(example.replace("receiver: pages", "receiver: webhook"))
    tool("amtool", "check-config", tmp_path / "alertmanager.yml")


def test_every_alert_says_what_is_and_what_to_do():
    """A sentence, an action and a severity of two; an alert without one of them leaves somebody alone at night."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {each["alert"] for each in alerts} == {"GatewayDown", "DirectorDown", "TritonDown", "ModelErrors"}
    for each in alerts:
        assert set(each["annotations"]) == {"summary", "action"}, each["alert"]
        assert all(text.endswith(".") for text in each["annotations"].values()), each["alert"]
        assert each["labels"]["severity"] in {"critical", "warning"}


GATEWAY = 'up{job="gateway"}'
STABLE = 'up{job="triton",model="digits",version="3",role="stable",instance="10.213.0.130:8002"}'
CANDIDATE = STABLE.replace("stable", "candidate")
FAILED_LISTS = "prometheus_sd_http_failures_total"
CLUSTER = 'envoy_cluster_name="digits--v3--http"'
REQUESTS = f"envoy_cluster_upstream_rq_completed{{{CLUSTER}}}"
FAILED = f'envoy_cluster_upstream_rq_xx{{{CLUSTER},envoy_response_code_class="5"}}'
MADE_GOOD = f'envoy_cluster_retry_upstream_rq_xx{{{CLUSTER},envoy_response_code_class="5"}}'
OTHERS = 'envoy_cluster_upstream_rq_xx{envoy_cluster_name="recorder-http",envoy_response_code_class="5"}'
OTHERS_REQUESTS = 'envoy_cluster_upstream_rq_completed{envoy_cluster_name="recorder-http"}'


@promtool
@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({GATEWAY: "1x30", STABLE: "1x30", FAILED_LISTS: "0x30"}, {}),
        ({GATEWAY: "1x20 0x10"}, {"GatewayDown": "critical"}),
        ({GATEWAY: "1x28 0 0"}, {}),
        ({FAILED_LISTS: "0x24 1+1x6"}, {"DirectorDown": "critical"}),
        ({FAILED_LISTS: "0x24 1x6"}, {}),
        ({STABLE: "1x20 0x10"}, {"TritonDown": "critical"}),
        ({CANDIDATE: "1x20 0x10"}, {"TritonDown": "warning"}),
        ({STABLE: "1x20 0x2 stale"}, {}),
        ({REQUESTS: "0+100x30", FAILED: "0+2x30"}, {"ModelErrors": "critical"}),
        ({REQUESTS: "0+100x30", MADE_GOOD: "0+2x30"}, {"ModelErrors": "critical"}),
        ({REQUESTS: "0+1000x30", FAILED: "0+6x30", MADE_GOOD: "0+6x30"}, {"ModelErrors": "critical"}),
        ({REQUESTS: "0+1000x30", FAILED: "0+6x30"}, {}),
        ({REQUESTS: "0x20 1x10", FAILED: "0x20 1x10"}, {}),
        ({OTHERS_REQUESTS: "0+100x30", OTHERS: "0+100x30"}, {}),
    ],
    ids=[
        "all is well",
        "the gateway is gone",
        "the gateway was away for a moment",
        "the director is gone",
        "the director was away for a moment",
        "a stable server is gone",
        "a candidate's server is gone",
        "a server that was taken out of service",
        "users get errors",
        "errors that were made good",
        "both kinds count together",
        "few errors of many requests",
        "one request, and it failed",
        "errors of what serves no model",
    ],
)
def test_an_alert_fires_when_it_should(tmp_path, series, expected):
    """After five minutes, a look each ten seconds: these alerts and no other, with this severity."""
    fires = [{"labels": f'{{alertname="{name}", severity="{severity}"}}', "value": 1} for name, severity in expected.items()]
    asked = 'count by (alertname, severity) (ALERTS{alertstate="firing"})'
    case = {
        "interval": "10s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": asked, "eval_time": "5m", "exp_samples": fires}],
    }
    rules = {"rule_files": [str(PROMETHEUS / "rules.yml")], "evaluation_interval": "10s", "tests": [case]}
    (tmp_path / "cases.yml").write_text(json.dumps(rules))
    tool("promtool", "test", "rules", tmp_path / "cases.yml")
