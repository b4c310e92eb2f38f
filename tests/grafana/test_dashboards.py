"""The dashboards keep the rules of grafana/dashboard-linter, stated here in our own words and under their
names, and some of our own. Each rule is shown to find what breaks it."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from observe import dashboards
from observe.dashboards import FOLDER, panels, variables

Dashboard = dict[str, Any]
Rule = Callable[[Dashboard], Iterator[str]]

_CACHES = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
CACHE = Path(os.environ.get("TDX_TEST_CACHE") or Path(_CACHES, "tdx-test"))

DATASOURCES = ("${datasource}", "$datasource")
UNITS = {"Bps", "bytes", "dtdurations", "percentunit", "reqps", "s", "short"}
"""Of Grafana's units, those in use here."""


def targets(dashboard: Dashboard) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield panel, target


def selectors(expression: str) -> Iterator[tuple[str, str, str]]:
    """Each series that an expression asks for: its name, its matchers and its range."""
    blank = re.sub(r'"[^"]*"', lambda found: found[0].replace("{", " ").replace("}", " "), expression)
    for found in re.finditer(r"\b((?:tdx|process)_[a-z0-9_]+)\b(\{[^}]*\})?(\[[^\]]*\])?", blank):
        start, end = found.span()
        yield found[1], expression[start:end].partition("{")[2].partition("}")[0], found[3] or ""


# --- the rules of the linter ---------------------------------------------------


def template_datasource_rule(dashboard: Dashboard) -> Iterator[str]:
    sources = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    found = [(each["name"], each["label"], each["query"]) for each in sources]
    if found != [("datasource", "Data source", "prometheus")]:
        yield f"the variables for a data source are {found}"


def _template(dashboard: Dashboard, name: str) -> Iterator[str]:
    found = variables(dashboard).get(name)
    if found is None:
        yield f"there is no variable {name}"
        return
    if found["label"] != name.capitalize():
        yield f"the variable {name} is labelled {found['label']}"
    if found["type"] != "query" or found["datasource"]["uid"] not in DATASOURCES:
        yield f"the variable {name} is no query of the chosen data source"
    if not (found["multi"] and found["includeAll"] and found["allValue"] == ".+"):
        yield f"of the variable {name} one cannot choose several, or all by .+"


def template_job_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _template(dashboard, "job")


def template_instance_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _template(dashboard, "instance")


def template_label_promql_rule(dashboard: Dashboard) -> Iterator[str]:
    for name, variable in variables(dashboard).items():
        if variable["type"] == "query" and not dashboards.VALUES.match(variable["query"]["query"]):
            yield f"the variable {name} is not made of label_values()"


def template_on_time_change_reload(dashboard: Dashboard) -> Iterator[str]:
    for name, variable in variables(dashboard).items():
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield f"the variable {name} is not asked for again where the time is changed"


def panel_datasource_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        for each in (panel, *panel.get("targets", [])):
            if each["datasource"].get("uid") not in DATASOURCES:
                yield f"{panel['title']} does not ask the chosen data source"


def panel_title_description_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        if not panel["title"] or not panel.get("description"):
            yield f"the panel {panel['id']} has no title or no description"


def panel_units_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else defaults.get("unit")
        overridden = [
            each["value"]
            for override in panel["fieldConfig"]["overrides"]
            for each in override["properties"]
            if each["id"] == "unit"
        ]
        if not {unit, *overridden} <= UNITS:
            yield f"{panel['title']} has the units {[unit, *overridden]}"


def panel_no_targets_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield f"{panel['title']} asks for nothing"


def target_promql_rule(dashboard: Dashboard) -> Iterator[str]:
    """What can be seen without a parser; test_queries.py lets Prometheus parse and answer each."""
    for panel, target in targets(dashboard):
        expression = target["expr"]
        unknown = {found[1] or found[2] for found in dashboards.VARIABLE.finditer(expression)} - {
            "__rate_interval",
            *variables(dashboard),
        }
        balanced = all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
        if unknown or not balanced or not list(selectors(expression)):
            yield f"{panel['title']} asks for {expression}"


def target_rate_interval_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel, target in targets(dashboard):
        for name, _, over in selectors(target["expr"]):
            if over not in {"", "[$__rate_interval]"}:
                yield f"{panel['title']} asks for {name} over {over}"


def _matchers(dashboard: Dashboard, name: str) -> Iterator[str]:
    for panel, target in targets(dashboard):
        for series, matchers, _ in selectors(target["expr"]):
            if f'{name}=~"${name}"' not in matchers.split(", "):
                yield f"{panel['title']} asks for {series} of every {name}"


def target_job_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _matchers(dashboard, "job")


def target_instance_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _matchers(dashboard, "instance")


def target_counter_agg_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel, target in targets(dashboard):
        counted = re.findall(r"\b[a-z_]+_(?:total|bucket|count|sum)\b", target["expr"])
        rated = re.findall(
            r"\b(?:rate|increase)\([a-z_]+_(?:total|bucket|count|sum)\{[^}]*\}\[", target["expr"]
        )
        if len(counted) != len(rated):
            yield f"{panel['title']} asks for a counter as it is"


def uneditable_rule(dashboard: Dashboard) -> Iterator[str]:
    if dashboard.get("editable", True):
        yield "it can be edited"


# --- ours ----------------------------------------------------------------------


def identity_rule(dashboard: Dashboard) -> Iterator[str]:
    ids = [panel["id"] for panel in panels(dashboard)]
    if len(set(ids)) != len(ids):
        yield f"the ids of the panels are {ids}"
    if not dashboard["title"].startswith("tdx / ") or dashboard["tags"] != ["tdx"]:
        yield "it is not among those of tdx"
    if dashboard["schemaVersion"] < 39 or dashboard.get("id") is not None or not dashboard["description"]:
        yield "it is of an older schema, or has the id of one in some Grafana, or no description"


def link_rule(dashboard: Dashboard) -> Iterator[str]:
    """With the time that is shown; not with the variables, of which another dashboard has others."""
    found = [
        (each["type"], each["tags"], each["keepTime"], each["includeVars"]) for each in dashboard["links"]
    ]
    if found != [("dashboards", ["tdx"], True, False)]:
        yield "it does not lead to the others"


def grid_rule(dashboard: Dashboard) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(dashboard):
        grid = panel["gridPos"]
        if grid["x"] + grid["w"] > 24:
            yield f"{panel['title']} goes beyond the edge"
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                if taken.setdefault((x, y), panel["title"]) != panel["title"]:
                    yield f"{panel['title']} covers {taken[x, y]}"


def aggregation_rule(dashboard: Dashboard) -> Iterator[str]:
    """What a line is called tells it from the others: the labels in the legend are those that are left."""
    for panel, target in targets(dashboard):
        kept = re.match(r"[a-z]+ by \(([^)]*)\)", target["expr"])
        labels = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        if not labels <= set(kept[1].split(", ") if kept else ()):
            yield f"{panel['title']}: {target['legendFormat']}"


RULES: list[Rule] = [
    template_datasource_rule,
    template_job_rule,
    template_instance_rule,
    template_label_promql_rule,
    template_on_time_change_reload,
    panel_datasource_rule,
    panel_title_description_rule,
    panel_units_rule,
    panel_no_targets_rule,
    target_promql_rule,
    target_rate_interval_rule,
    target_job_rule,
    target_instance_rule,
    target_counter_agg_rule,
    uneditable_rule,
    identity_rule,
    link_rule,
    grid_rule,
    aggregation_rule,
]


@pytest.mark.parametrize("name", dashboards.names())
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_dashboard_keeps_the_rule(rule: Rule, name: str) -> None:
    assert list(rule(dashboards.load(name))) == []


# --- each rule can fail --------------------------------------------------------

M = 'job=~"$job", instance=~"$instance"'


def change(place: str, value: Any) -> Callable[[Dashboard], None]:
    """Put ``value`` where the path leads; ``@name`` is the variable of that name."""

    def apply(dashboard: Dashboard) -> None:
        at: Any = dashboard
        *way, last = place.split("/")
        for step in way:
            at = (
                variables(at)[step[1:]] if step.startswith("@") else at[int(step) if step.isdigit() else step]
            )
        at[int(last) if last.isdigit() else last] = value

    return apply


def without(name: str) -> Callable[[Dashboard], None]:
    def apply(dashboard: Dashboard) -> None:
        listed = dashboard["templating"]["list"]
        listed[:] = [each for each in listed if each["name"] != name]

    return apply


EXPRESSION = "panels/0/targets/0/expr"
BROKEN: list[tuple[Rule, Callable[[Dashboard], None]]] = [
    (template_datasource_rule, without("datasource")),
    (template_datasource_rule, change("@datasource/name", "source")),
    (template_datasource_rule, change("@datasource/label", "Source")),
    (template_job_rule, without("job")),
    (template_job_rule, change("@job/label", "Task")),
    (template_job_rule, change("@job/datasource", {"uid": "prometheus"})),
    (template_job_rule, change("@job/multi", False)),
    (template_job_rule, change("@job/type", "custom")),
    (template_instance_rule, without("instance")),
    (template_instance_rule, change("@instance/allValue", ".*")),
    (template_label_promql_rule, change("@job/query/query", "tdx_build_info")),
    (template_on_time_change_reload, change("@job/refresh", 1)),
    (panel_datasource_rule, change("panels/0/datasource", {"uid": "prometheus"})),
    (panel_datasource_rule, change("panels/0/targets/0/datasource", {"uid": "prometheus"})),
    (panel_title_description_rule, change("panels/0/title", "")),
    (panel_title_description_rule, change("panels/0/description", "")),
    (panel_units_rule, change("panels/0/fieldConfig/defaults/unit", "parsecs")),
    (panel_units_rule, change("panels/0/fieldConfig/defaults", {})),
    (panel_no_targets_rule, change("panels/0/targets", [])),
    (target_promql_rule, change(EXPRESSION, f"sum(tdx_uploads_active{{{M}}}")),
    (target_promql_rule, change(EXPRESSION, f'sum(tdx_uploads_active{{{M}, owner=~"$owner"}})')),
    (target_promql_rule, change(EXPRESSION, "42")),
    (target_rate_interval_rule, change(EXPRESSION, f"sum(rate(tdx_resumes_total{{{M}}}[5m]))")),
    (target_rate_interval_rule, change(EXPRESSION, f"sum(increase(tdx_resumes_total{{{M}}}[$__range]))")),
    (target_job_rule, change(EXPRESSION, 'sum(tdx_uploads_active{instance=~"$instance"})')),
    (target_job_rule, change(EXPRESSION, f"sum(tdx_uploads_active{{{M}}}) + sum(tdx_transfers_active)")),
    (target_instance_rule, change(EXPRESSION, 'sum(tdx_uploads_active{job=~"$job", instance="$instance"})')),
    (target_counter_agg_rule, change(EXPRESSION, f"sum(tdx_resumes_total{{{M}}})")),
    (
        target_counter_agg_rule,
        change(EXPRESSION, f"max_over_time(tdx_resumes_total{{{M}}}[$__rate_interval])"),
    ),
    (uneditable_rule, change("editable", True)),
    (identity_rule, change("panels/0/id", 2)),
    (identity_rule, change("tags", [])),
    (identity_rule, change("schemaVersion", 38)),
    (link_rule, change("links", [])),
    (grid_rule, change("panels/0/gridPos/x", 22)),
    (grid_rule, change("panels/0/gridPos/h", 5)),
    (aggregation_rule, change("panels/0/targets/0/legendFormat", "{{instance}}")),
]


@pytest.mark.parametrize(("rule", "breaking"), BROKEN, ids=lambda each: getattr(each, "__name__", ""))
def test_a_rule_finds_what_breaks_it(rule: Rule, breaking: Callable[[Dashboard], None]) -> None:
    dashboard = copy.deepcopy(dashboards.load("receiver"))
    assert list(rule(dashboard)) == []
    breaking(dashboard)
    assert list(rule(dashboard)) != []


def test_every_rule_is_shown_to_fail() -> None:
    assert [rule.__name__ for rule in RULES if rule not in {broken for broken, _ in BROKEN}] == []


# --- all together --------------------------------------------------------------


def test_no_two_dashboards_have_a_title_or_an_id_in_common() -> None:
    all_of_them = [dashboards.load(name) for name in dashboards.names()]
    assert len(all_of_them) == 4
    for key in ("uid", "title"):
        assert len({each[key] for each in all_of_them}) == 4


@pytest.mark.parametrize("name", dashboards.names())
def test_the_linter_itself_finds_nothing(name: str) -> None:
    linter = shutil.which("dashboard-linter")
    if linter is None:
        pytest.skip("there is no dashboard-linter; the rules above are its rules")
    command = [linter, "lint", "--strict", str(FOLDER / f"{name}.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def decode(*files: Path) -> subprocess.CompletedProcess[str]:
    """What Grafana's own types for dashboards make of these (github.com/grafana/grafana-foundation-sdk)."""
    decoder = CACHE / "bin" / "decode-dashboards"
    if not decoder.exists():
        pytest.skip(f"there is no {decoder}; make test-deps, where there is go")
    return subprocess.run([decoder, *files], capture_output=True, text=True, check=False)


def test_grafanas_own_types_know_every_field() -> None:
    done = decode(*(FOLDER / f"{name}.json" for name in dashboards.names()))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"graphTooltip": 1', '"tooltip": 1', "unexpected field 'tooltip'"),
        ('"showPoints": "never"', '"showPoint": "never"', "unexpected field 'showPoint'"),
        ('"expr": ', '"expression": ', "unexpected field 'expression'"),
        ('"calcs": ["lastNotNull"]', '"calcs": "lastNotNull"', "cannot unmarshal string"),
    ],
)
def test_grafanas_own_types_find_a_field_that_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = (FOLDER / "receiver.json").read_text()
    assert old in text
    broken = tmp_path / "broken.json"
    broken.write_text(text.replace(old, new))
    done = decode(broken)
    assert done.returncode == 1
    assert told in done.stderr
