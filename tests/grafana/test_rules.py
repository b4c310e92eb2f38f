"""The alerts and the configurations around them, as far as they can be looked at without running anything but
promtool. docker-compose.yml is only read here: there is no Docker where these tests run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from observe.dashboards import FOLDER
from support.observing import promtool
from support.processes import ROOT, Processes

GRAFANA = ROOT / "grafana"
PROMETHEUS = GRAFANA / "prometheus"
RULES = PROMETHEUS / "rules" / "tdx.yml"
CASES = PROMETHEUS / "tests" / "tdx.yml"
RUNBOOK = ROOT / "docs" / "alerts.md"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"] if "alert" in rule]


NAMES = [each["alert"] for each in alerts()]


# --- Prometheus ----------------------------------------------------------------


def test_promtool_finds_nothing_wrong_with_the_rules_and_the_configuration(processes: Processes) -> None:
    # The configuration may name files only beside it, and does so.
    assert "SUCCESS" in promtool(processes, "check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert f"{len(NAMES)} rules found" in promtool(processes, "check", "rules", str(RULES))


def test_the_rules_do_what_their_unit_tests_say(processes: Processes) -> None:
    assert "SUCCESS" in promtool(processes, "test", "rules", str(CASES))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for: 5m", "for: 30m"),
        ("> 0.1", "> 0.5"),
        (' result="failed"', ' result!="failed"'),
        ("|busy", "|exists"),
        ("1.5 *", "3 *"),
        ("+ 93600", "+ 9"),
        ("unless tdx_push_last_success_timestamp_seconds", "* 0"),
        ("[6h], 86400", "[6h], 3600"),
        ('tdx_storage_free_bytes{job="tdx"} <= 0', 'tdx_storage_free_bytes{job="tdx"} < 0'),
    ],
)
def test_the_unit_tests_find_rules_that_are_wrong(
    processes: Processes, area: Path, old: str, new: str
) -> None:
    text = RULES.read_text()
    assert old in text
    folder = area / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    (folder / "rules" / "tdx.yml").write_text(text.replace(old, new))
    process = processes.run("promtool", ["promtool", "test", "rules", str(folder / "tests" / "tdx.yml")])
    assert process.wait() == 1, process.log()
    assert "FAILED" in process.stdout + process.stderr


def test_there_is_a_case_of_each_alert_firing_and_one_of_it_not_firing() -> None:
    cases = [case for test in read(CASES)["tests"] for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert firing == set(NAMES)
    # What is in a case of firing is all that fires then, so also of what is listed nothing else does.
    quiet = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert set(NAMES) - quiet == {"TdxJobFailed"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    page, _, anchor = notes["runbook"].partition("#")
    assert (page, anchor) == ("docs/alerts.md", alert["alert"].lower())
    section = re.search(rf"(?m)^## {alert['alert']}\n\n(\w+)\.", RUNBOOK.read_text())
    assert section, f"{RUNBOOK} has no section for it"
    assert section[1].lower() == alert["labels"]["severity"]


def test_the_runbook_knows_no_other_alerts() -> None:
    assert sorted(re.findall(r"(?m)^## (Tdx\w+)$", RUNBOOK.read_text())) == sorted(NAMES)


def test_rules_of_receivers_ask_for_their_job_and_those_of_pushes_for_none() -> None:
    for alert in alerts():
        series = re.findall(r"\b(?:tdx_[a-z_]+|up)\b(\{[^}]*\})?", alert["expr"])
        named = [matchers for matchers in series if 'job="tdx"' in matchers]
        if alert["alert"].startswith("TdxJob"):
            assert named == []
        else:
            assert named == series


# --- the rest ------------------------------------------------------------------


def test_what_compose_mounts_is_there_and_each_version_is_pinned() -> None:
    compose = read(GRAFANA / "docker-compose.yml")
    services = compose["services"]
    assert set(services) == {"prometheus", "grafana", "node-exporter", "pushgateway"}
    for name, service in services.items():
        assert re.fullmatch(r"docker\.io/[a-z]+/[a-z-]+:v?\d+\.\d+\.\d+", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service["volumes"]:
            source, target, *mode = re.split(r":(?!-)", volume)
            assert target.startswith("/"), name
            if source.startswith("./"):
                assert (GRAFANA / source).exists(), source
                assert mode == ["ro"], source
            elif not source.startswith("${"):
                assert source in compose["volumes"], source


def test_what_is_provisioned_is_where_compose_puts_it() -> None:
    compose = read(GRAFANA / "docker-compose.yml")["services"]
    mounted = {part.split(":")[1]: part.split(":")[0] for part in compose["grafana"]["volumes"]}
    dashboards = read(GRAFANA / "provisioning" / "dashboards" / "tdx.yml")
    (provider,) = dashboards["providers"]
    assert dashboards["apiVersion"] == 1
    assert provider["type"] == "file"
    assert GRAFANA / mounted[provider["options"]["path"]] == FOLDER
    sources = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")
    (source,) = sources["datasources"]
    assert sources["apiVersion"] == 1
    assert source["type"] == "prometheus"
    host, port = source["url"].removeprefix("http://").split(":")
    assert compose[host]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_what_the_example_scrapes_is_what_compose_starts() -> None:
    config = read(PROMETHEUS / "prometheus.yml")
    compose = read(GRAFANA / "docker-compose.yml")["services"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]}
    assert set(jobs) == {"tdx", "node", "pushgateway"}
    assert {target.split(":")[0] for target in jobs.values()} <= {*compose, "host.docker.internal"}
    assert compose["prometheus"]["extra_hosts"] == ["host.docker.internal:host-gateway"]
    interval = config["global"]["scrape_interval"]
    (source,) = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["jsonData"]["timeInterval"] == interval
