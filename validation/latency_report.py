"""The latency gate's report for people: one HTML page that needs nothing from outside, with the sentences that decide and the plots.

`latency_benchmark` writes it beside its evidence. Plots are SVG drawn by matplotlib; there is no script in the page. It judges nothing.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from validation.contract import Finding, Outcome, worst

if TYPE_CHECKING:
    from validation.latency_judge import Measured

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1f2328 }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #d0d7de; padding: .4em .7em; text-align: left; vertical-align: top }
svg { width: 100%; height: auto } .passed { color: #1a7f37 } .inconclusive { color: #9a6700 } .failed { color: #cf222e }
"""
LIMITS = {"p50_ms": 0.5, "p99_ms": 0.99}
MOST_POINTS = 5000


def write(path: Path, measured: Measured, findings: Sequence[Finding]) -> None:
    path.write_text(page(measured, findings), encoding="utf-8")


def page(measured: Measured, findings: Sequence[Finding]) -> str:
    """Everything that came from outside is escaped."""
    outcome = worst(each.outcome for each in findings)
    deciding = next((each for each in findings if each.outcome is outcome), None)
    why = f": {deciding.name}: {html.escape(deciding.why)}" if deciding and outcome is not Outcome.PASSED else ""
    rows = "".join(_row(each) for each in findings)
    on = f"{measured.client}; {measured.gpu}" if measured.gpu else str(measured.client)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>latency_benchmark</title>'
        f'<style>{STYLE}</style></head><body><h1>Latency under load</h1><p class="{outcome.word}"><b>{outcome.word}</b>{why}</p>'
        f"<table><tr><th>finding<th>outcome<th>observed<th>limit<th>n<th>why</tr>{rows}</table>"
        f"<p>{html.escape(on)}</p>{_plots(measured, findings) if measured.queries else ''}</body></html>\n"
    )


def _row(finding: Finding) -> str:
    words = f"{finding.why} ({finding.advice})" if finding.advice else finding.why
    cells = (finding.name, finding.outcome.word, _number(finding.observed), _number(finding.limit), finding.n or "", words)
    return f'<tr class="{finding.outcome.word}">' + "".join(f"<td>{html.escape(str(each))}" for each in cells) + "</tr>"


def _number(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else str(value or "")


def _plots(measured: Measured, findings: Sequence[Finding]) -> str:
    import matplotlib as mpl

    mpl.use("Agg")  # no screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    distribution, course, *more = figure.subplots(3 if any(measured.curve.values()) else 2, 1)
    _plot_distribution(distribution, measured)
    for each in findings:
        if each.name in LIMITS and each.limit is not None:
            distribution.plot(each.limit, 1 - LIMITS[each.name], "v", color="#cf222e", label=f"limit of {each.name}: {each.limit:g}")
    distribution.legend()
    _plot_course(course, measured)
    for each in more:
        _plot_curve(each, measured)
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    return svg[svg.index("<svg") :]


def _plot_distribution(axes: Any, measured: Measured) -> None:
    """Share of queries that took longer, both axes logarithmic: a tail that a mean hides is a shoulder here."""
    samples = {"candidate, without a pause": measured.latency_s}
    samples |= {f"{name}, in turns": np.concatenate(blocks) for name, blocks in measured.blocks.items() if blocks}
    for label, latency_s in samples.items():
        finite = np.sort(latency_s[np.isfinite(latency_s)])
        share = 1 - np.arange(len(finite)) / max(1, len(latency_s))
        keep = np.unique(np.geomspace(1, max(1, len(finite)), min(MOST_POINTS, max(1, len(finite)))).astype(int)) - 1
        at = (len(finite) - 1 - keep)[::-1] if len(finite) else keep[:0]
        axes.step(1000 * finite[at], share[at], where="post", label=label)
    axes.set(xscale="log", yscale="log", xlabel="latency from due time, ms", ylabel="share of queries that took longer")
    axes.grid(visible=True, which="both", alpha=0.3)


def _plot_course(axes: Any, measured: Measured) -> None:
    every = max(1, measured.queries // MOST_POINTS)
    axes.plot(measured.due_s[::every], 1000 * measured.latency_s[::every], ".", markersize=3, alpha=0.5, label="latency")
    axes.plot(measured.due_s[::every], 1000 * measured.late_s[::every], ".", markersize=2, alpha=0.5, label="of it: sent late")
    axes.set(yscale="log", xlabel="due, s from the load's start", ylabel="ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _plot_curve(axes: Any, measured: Measured) -> None:
    """Latency at other rates: where a p99 turns up, the server has reached what it bears."""
    for name, rungs in measured.curve.items():
        rates = [each.rate_per_s for each in rungs]
        axes.plot(rates, [each.p99_ms for each in rungs], "o-", label=f"{name}: p99")
        axes.plot(rates, [each.p50_ms for each in rungs], "o--", label=f"{name}: p50")
    axes.set(yscale="log", xlabel="queries a second", ylabel="ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
