"""The demo's report: one HTML file that needs nothing from outside, and all figures as JSON.

`demo.run` calls `write` at the end with what it saw. Plots are SVG drawn by matplotlib and put into the page; there is no script in it.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no screen

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demo.expected import STORY, Expected, Record, deviations, result

COLOURS = {"promoted": "#1a7f37", "refused": "#9a6700", "rolled_back": "#bc4c00"}
WRONG = "#cf222e"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1f2328 }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #d0d7de; padding: .4em .7em; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } .good { color: #1a7f37 } .bad { color: #cf222e }
"""


def write(record: Record, folder: Path, story: Sequence[Expected] = STORY) -> None:
    """Writes `report.html` and `result.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result(record, story), indent=1) + "\n")
    (folder / "report.html").write_text(page(record, story), encoding="utf-8")


def page(record: Record, story: Sequence[Expected] = STORY) -> str:
    """The report as one page. Everything that came from outside is escaped."""
    figures = result(record, story)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Penstock demo</title>'
        f"<style>{STYLE}</style></head><body><h1>Penstock: five versions on their way to production</h1>"
        f"{_verdict(deviations(record, story))}{_table(figures['versions'])}{_summary(figures)}{plots(record)}{_tasks(figures['versions'])}"
        "</body></html>\n"
    )


def plots(record: Record) -> str:
    """Share, latency, requests and errors over time as one SVG, the decisions as vertical lines in each."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    shares, latency, requests, errors = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 2, 1))
    _plot_shares(shares, record)
    _plot_latency(latency, record)
    _plot_requests(requests, errors, record)
    for axes in (shares, latency, requests, errors):
        _mark(axes, record)
        axes.grid(alpha=0.25)
    _name_marks(shares, record)
    errors.set_xlabel("seconds since the start of the demo")
    return _svg(figure)


def _plot_shares(axes: Axes, record: Record) -> None:
    """Each version's share as an area: stable has what the candidate has not."""
    times = [share.unix_s - record.started_unix_s for share in record.shares]
    for version in sorted({each for share in record.shares for each in (share.stable, share.candidate)} - {0}):
        percent = [_percent(share, version) or math.nan for share in record.shares]  # no line where a version has nothing
        axes.step(times, percent, where="post", label=f"v{version}", linewidth=1.6)
        axes.fill_between(times, percent, step="post", alpha=0.12)
    mirrored = [share.shadow_permille / 10 for share in record.shares]
    axes.step(times, mirrored, where="post", label="mirrored", linestyle=":", color="grey", linewidth=1)
    axes.set_ylabel("share of traffic, %")
    axes.legend(loc="center left", fontsize="small")


def _percent(share: Any, version: int) -> float:
    if version == share.stable:
        return 100 - share.permille / 10 if share.candidate != version else 100.0
    return share.permille / 10 if version == share.candidate else 0.0


def _plot_latency(axes: Axes, record: Record) -> None:
    served = [line for line in record.lines if line["p99_ms"] is not None]
    times = [line["second"] - record.started_unix_s for line in served]
    for name in ("p50_ms", "p99_ms"):
        axes.plot(times, [line[name] for line in served], label=name.removesuffix("_ms"), linewidth=1)
    if served:
        axes.set_yscale("log")
        axes.legend(loc="upper left", fontsize="small")
    axes.set_ylabel("latency at the client, ms")


def _plot_requests(requests: Axes, errors: Axes, record: Record) -> None:
    lines = [line for line in record.lines if line["span_s"] > 0.5]  # of a fragment of a second a rate says nothing
    times = [line["second"] - record.started_unix_s for line in lines]
    requests.plot(times, [line["ok"] / line["span_s"] for line in lines], label="answered", linewidth=1)
    requests.plot(times, [line["not_yet_served"] / line["span_s"] for line in lines], label="nothing stable yet", linewidth=1, color="grey")
    requests.set_ylabel("requests/s")
    requests.set_ylim(bottom=0)
    requests.legend(loc="lower left", fontsize="small")
    errors.plot(times, [line["errors"] for line in lines], color=WRONG, linewidth=1)
    errors.set_ylabel("errors")
    errors.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    errors.set_ylim(0, max([1, *(line["errors"] for line in lines)]))


def _mark(axes: Axes, record: Record) -> None:
    for ending in record.endings.values():
        axes.axvline(ending.registered_unix_s - record.started_unix_s, color="grey", linestyle=":", linewidth=0.8)
        axes.axvline(ending.ended_unix_s - record.started_unix_s, color=COLOURS.get(ending.outcome, WRONG), linewidth=1.2)
    for unix_s, _ in record.marks:
        axes.axvline(unix_s - record.started_unix_s, color="black", linestyle="--", linewidth=0.8)


def _name_marks(axes: Axes, record: Record) -> None:
    for ending in record.endings.values():
        words = f"v{ending.version} {ending.outcome}"
        _name_mark(axes, ending.ended_unix_s - record.started_unix_s, words, COLOURS.get(ending.outcome, WRONG))
    for unix_s, words in record.marks:
        _name_mark(axes, unix_s - record.started_unix_s, words, "black")


def _name_mark(axes: Axes, second: float, words: str, colour: str) -> None:
    above = axes.get_xaxis_transform()
    axes.text(second, 1.02, words, color=colour, transform=above, rotation=25, fontsize="small", ha="left", va="bottom")


def _svg(figure: Figure) -> str:
    sink = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "penstock"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    drawn = sink.getvalue()
    return drawn[drawn.index("<svg") :]


def _verdict(wrong: Sequence[str]) -> str:
    if not wrong:
        return '<p class="good">Everything went as said.</p>'
    rows = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in wrong)
    return f'<p class="bad">Not everything went as said:</p><ul class="bad">{rows}</ul>'


def _table(versions: Sequence[dict[str, Any]]) -> str:
    heads = ("version", "outcome", "ended at", "why", "seconds", "answered", "failed at its server", "client errors")
    rows = "".join(_row(row) for row in versions)
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"


def _row(row: dict[str, Any]) -> str:
    words = (f"v{row['version']}, {row['story']}", row["outcome"] or "none", row.get("ended_at", ""), row.get("why", ""))
    numbers = (row.get("registration_to_outcome_s", ""), row["answered"], row["failed"], row.get("client_errors", ""))
    cells = "".join(f"<td>{html.escape(str(word))}</td>" for word in words)
    return f"<tr>{cells}{''.join(f'<td class=n>{number}</td>' for number in numbers)}</tr>"


def _summary(figures: dict[str, Any]) -> str:
    return (
        f"<p>{figures['requests']:,} requests in {figures['total_s']} s ({figures['rps']} a second), "
        f"{figures['client_errors']} errors at the client. "
        f"From registration to the first task: median {_or_none(figures['event_to_task_s'])} s. "
        f"From v4's first failing request to its last one: {_or_none(figures['breach_to_stable_s'])} s. "
        f"Before anything was stable, {figures['not_yet_served']:,} requests were told so.</p>"
    )


def _tasks(versions: Sequence[dict[str, Any]]) -> str:
    rows = [f"<tr><td>v{row['version']}</td><td>{_task_words(row['tasks'])}</td></tr>" for row in versions if row.get("tasks")]
    return f"<h2>Tasks, in seconds</h2><table>{''.join(rows)}</table>"


def _task_words(tasks: Sequence[dict[str, Any]]) -> str:
    ran = [f"{each['task']} {each['seconds']}" if each["state"] != "skipped" else f"({each['task']})" for each in tasks]
    return html.escape(", ".join(ran))


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
