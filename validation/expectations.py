"""Table-shaped expectations, run by Great Expectations: a suite that is generated here, and the user's own.

The gate `distribution` calls it with the golden set as a table; the one leaf that imports Great Expectations. Its results become findings
that fail closed: by itself it drops an expectation that it does not know with a log line, counts one that looked at no row as met, and
mixes one that could not be computed with one that does not hold. It never calls anybody: analytics are off, and the page that it renders
for people loads nothing from elsewhere.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from validation.contract import Finding
from validation.drift import Sketch
from validation.findings import failed, inconclusive, passed
from validation.policy import Distribution

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported

import great_expectations as gx
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.registry import list_registered_expectation_implementations
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

DOCS_EXPECTATIONS = 1000
"""Shown on the page, worst first: about 1.3 KiB each."""

EXACT = 2**53
"""Whole numbers from here on are not all floats."""

SHOWN_CHARACTERS = 300
CALLS_NOBODY = (
    "<head><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em .6em;vertical-align:top;text-align:left}"
    ".modal,nav,.navbar,img,button{display:none}</style>"
)

Expectation = Mapping[str, Any]
"""`{"type": ..., "kwargs": {...}}`, as in Great Expectations' own files."""


class BadSuite(ValueError):
    """A suite that cannot be run as it stands; the message says where and what is expected."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of one suite: findings, and the page for people as HTML."""

    findings: tuple[Finding, ...]
    page: str


def generated(types: Mapping[str, str | None], sketches: Mapping[str, Sketch], limits: Distribution) -> list[Expectation]:
    """The suite that signature (`types` by column), baselines and policy imply: columns, types, missing values, and what values may be."""
    whole: list[Expectation] = [
        _expectation("expect_table_row_count_to_be_between", min_value=1),
        _expectation("expect_table_columns_to_match_set", column_set=list(types), exact_match=True),
    ]
    return [*whole, *(each for name, kind in types.items() for each in _of_column(name, kind, sketches.get(name), limits))]


def _of_column(name: str, kind: str | None, sketch: Sketch | None, limits: Distribution) -> Iterator[Expectation]:
    if kind is not None and (name.endswith("[0]") or "[" not in name):  # the numbers of a tensor share one type
        yield _expectation("expect_column_values_to_be_of_type", column=name, type_="str" if kind == "object" else kind)
    missing = sketch.missing / sketch.rows if sketch and sketch.rows else 0
    yield _expectation("expect_column_values_to_not_be_null", column=name, mostly=max(0, 1 - missing - limits.missing) if missing else 1)
    if sketch and sketch.dtype == "text" and not sketch.others:
        values = list(sketch.categories)
        yield _expectation("expect_column_values_to_be_in_set", column=name, value_set=values, mostly=1 - limits.unseen)
    elif sketch and (ends := _range(name, sketch, limits)):
        yield _expectation("expect_column_values_to_be_between", column=name, min_value=ends[0], max_value=ends[1])


def _range(name: str, sketch: Sketch, limits: Distribution) -> tuple[float, float] | None:
    """The policy's where it has one, else what the baseline saw; whole numbers beyond 2^53 are rounded there, so ends give way."""
    for each in limits.ranges:
        if covers(each.column, name):
            return each.low, each.high
    if sketch.low is None or sketch.high is None:
        return None
    low, high = (math.nextafter(end, way) if abs(end) >= EXACT else end for end, way in ((sketch.low, -math.inf), (sketch.high, math.inf)))
    return low, high


def covers(column: str, name: str) -> bool:
    """Whether a policy's column is this one, or the tensor that it is a part of."""
    return name == column or name.startswith((f"{column}[", f"{column}:"))


def read_suite(value: Any) -> list[Expectation]:
    """A user's suite from the JSON that Great Expectations writes. Raises `BadSuite`: what is not understood is not left out."""
    rows = value.get("expectations") if isinstance(value, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise BadSuite("a suite is an object with a list `expectations` of one or more")
    known = list_registered_expectation_implementations()
    for number, row in enumerate(rows):
        kind = row.get("type") if isinstance(row, Mapping) else None
        if kind not in known:
            raise BadSuite(f"expectations[{number}].type is {kind!r}; known are those of Great Expectations {gx.__version__}")
        if not isinstance(row.get("kwargs"), Mapping):
            raise BadSuite(f"expectations[{number}].kwargs must be an object")
    return [{"type": row["type"], "kwargs": dict(row["kwargs"])} for row in rows]


def run_suite(name: str, suite: Iterable[Expectation], table: pd.DataFrame) -> Ran:
    """Runs a suite on a table. One finding for each expectation that is not met, and one for all that are. Raises `BadSuite`."""
    rows = list(suite)
    result = _result(name, rows, table)
    results = sorted(result.results, key=lambda each: each.success is True)
    judged = [_judged(f"{name}_{number}", each, table) for number, each in enumerate(results, 1)]
    result.results = results[:DOCS_EXPECTATIONS]
    return Ran(findings=tuple(_summed(name, judged, len(rows))), page=_page(result))


def _result(name: str, rows: list[Expectation], table: pd.DataFrame) -> Any:
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(enable=False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    rows_of = context.data_sources.add_pandas("golden_set").add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    try:
        suite = gx.ExpectationSuite(name=name, expectations=[dict(each) for each in rows])
    except Exception as error:  # the library's and pydantic's errors have no common type
        raise BadSuite(f"{name}: {' '.join(str(error).split())[:SHOWN_CHARACTERS]}") from error
    return rows_of.get_batch(batch_parameters={"dataframe": table}).validate(suite, result_format="BASIC")


def _judged(name: str, result: Any, table: pd.DataFrame) -> Finding:
    """One expectation's result. Only `True` with something looked at counts as met."""
    config = result.expectation_config
    details = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
    what = f"{config.type} {json.dumps(details, default=str)[:SHOWN_CHARACTERS]}"
    if trouble := _exception(result.exception_info):
        return inconclusive(name, f"{what} could not be computed: {trouble}", "mend the expectation, or the column that it names")
    seen = _seen(result.result, details, table)
    if not seen:
        return inconclusive(name, f"{what} looked at no value", "give the golden set rows with values there", n=0)
    if result.success is not True:
        return failed(name, f"{what} does not hold: {_found(result.result)}", n=seen)
    return passed(name, what, n=seen)


def _exception(info: Any) -> str | None:
    """The message of what was raised while the expectation was computed; the library nests it by metric, or not."""
    if not isinstance(info, Mapping):
        return "the result does not say whether anything was raised"
    for each in (info, *info.values()):
        if isinstance(each, Mapping) and each.get("raised_exception"):
            return " ".join(str(each.get("exception_message")).split())[:SHOWN_CHARACTERS]
    return None


def _seen(result: Mapping[str, Any], kwargs: Mapping[str, Any], table: pd.DataFrame) -> int:
    """Values that were looked at; the library says it for expectations about values. Others have seen what is in their column."""
    if "element_count" in result:
        missing = result.get("missing_count", 0)  # not in the expectation about missing values itself
        return int(result["element_count"]) - int(missing)
    if "observed_value" in result and result["observed_value"] is None:
        return 0
    column = kwargs.get("column")
    return int(table[column].notna().sum()) if column in table else len(table)


def _found(result: Mapping[str, Any]) -> str:
    if "unexpected_count" in result:
        some = ", ".join(str(each) for each in (result.get("partial_unexpected_list") or [])[:5])
        return f"{result['unexpected_count']} of {result.get('element_count')} values are unexpected, among them {some}"[:SHOWN_CHARACTERS]
    return f"observed {result.get('observed_value')}"[:SHOWN_CHARACTERS]


def _summed(name: str, judged: list[Finding], wanted: int) -> Iterator[Finding]:
    """Those met are one finding; fewer results than expectations is no pass, whatever became of the others."""
    met = [each for each in judged if each.outcome == 0]
    yield from (each for each in judged if each.outcome != 0)
    if len(judged) != wanted or not wanted:
        yield inconclusive(name, f"{len(judged)} of {wanted} expectations have a result", "look for the others in the task's log")
    elif len(met) == wanted:
        yield passed(name, f"{wanted} expectations of the suite hold", n=min(each.n or 0 for each in met))


def _page(result: Any) -> str:
    """The validation result's page of Data Docs, closed against loading scripts, styles and pictures from elsewhere."""
    page: str = DefaultJinjaPageView().render(  # type: ignore[no-untyped-call]
        ValidationResultsPageRenderer().render(result)
    )
    return page.replace("<head>", CALLS_NOBODY, 1)


def _expectation(kind: str, **kwargs: Any) -> Expectation:
    return {"type": kind, "kwargs": kwargs}
