"""What Prometheus answers to the queries of a dashboard, as Grafana asks them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from observe.dashboards import Query, filled, legend, timing
from support.observing import Prometheus


@dataclass(frozen=True, slots=True)
class Line:
    """One series: seconds since 1970 and values, those that are no number left out."""

    name: str
    labels: Mapping[str, str]
    times: list[float]
    values: list[float]


class Answers:
    """From ``start`` to ``end`` (seconds since 1970), where Prometheus scrapes each ``interval`` seconds and
    a point is shown each ``step``."""

    def __init__(
        self, prometheus: Prometheus, start: float, end: float, *, interval: float, step: float
    ) -> None:
        self._prometheus = prometheus
        self.start, self.end, self.step = start, end, step
        self._timing = timing(interval, step, end - start)

    def lines(self, query: Query, chosen: Mapping[str, str]) -> list[Line]:
        """What a query finds with these values of the variables; an instant one at the end."""
        expression = filled(query.expression, {**chosen, **self._timing})
        if query.instant:
            found = self._prometheus.api("query", query=expression, time=str(self.end))["result"]
            points = [(each["metric"], [each["value"]]) for each in found]
        else:
            span = {"start": str(self.start), "end": str(self.end), "step": str(self.step)}
            found = self._prometheus.api("query_range", query=expression, **span)["result"]
            points = [(each["metric"], each["values"]) for each in found]
        return [_line(query, labels, values) for labels, values in points]

    def choices(self, series: str, label: str) -> set[str]:
        """The values of a label, which a variable lets choose from."""
        return set(self._prometheus.api(f"label/{label}/values", **{"match[]": series}))


def _line(query: Query, labels: Mapping[str, str], points: list[tuple[float, str]]) -> Line:
    numbers = [(float(at), float(value)) for at, value in points]
    there = [(at, value) for at, value in numbers if math.isfinite(value)]
    return Line(legend(query.legend, labels), labels, [at for at, _ in there], [value for _, value in there])
