"""A profile as one page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lightning_gnnopt.analysis.reporting.plots import KINDS
from lightning_gnnopt.analysis.reporting.tables import (
    Table,
    count,
    environment_table,
    fit_table,
    layer_table,
    loading_table,
    memory_table,
    notes,
    part_table,
    peak_table,
    phase_table,
    place_table,
    share,
    sweep_tables,
    tensor_table,
    validation_table,
)

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

_MOST = 40  # rows of a table
_SHORT = 24  # characters of a cell that is kept in one line
_INK, _PAPER = "#010203", "#fdfcfb"  # stand for the page's own colours, which differ in the dark

DEFINITIONS = {
    "A step": "from the request for a batch to the request for the next one, validation left out."
    " Its phases add up to it.",
    "Timed steps": "all but the first ones, which warm up, and those that a recording of memory slowed down.",
    "Vertex and edge computation": "of a layer: what it computes for each node (linear maps, say), and for each edge,"
    " from the gathering of rows to what becomes of the aggregated messages. The backward pass is counted where the"
    " forward pass was.",
    "Parts of an edge computation": "`gather`: rows of nodes to edges. `message`: what edges compute. `aggregate`:"
    " edges to nodes. `update`: what follows within `propagate`. `fused`: message and aggregate in one operator."
    " `edge_update`: attention coefficients, say. `normalize`: weights and self loops of the edges, outside of"
    " `propagate`.",
    "Peak of a step": "the most bytes that it held at once beyond what was held before it, and its batch."
    " Parameters, gradients and the optimizer's state come on top.",
    "Memory expansion": "the peak of a step, its batch included, over the bytes of the batch: what one loaded byte"
    " grows to.",
}
"""What the words of the page mean."""


def render_page(report: BottleneckReport, svgs: Mapping[str, str], missing: str = "") -> str:
    """Write the page.

    Args:
        report: The report.
        svgs: Figures by kind, as :func:`inline_svg` makes them.
        missing: A sentence on why there are no figures; ``""`` if there are.

    Returns:
        HTML.
    """
    figures = {kind: _figure(report, kind, svg) for kind, svg in svgs.items()}
    body = [f"<h1>{html.escape(report.title)}</h1>", f'<p class="verdict">{_prose(report.verdict)}</p>']
    if missing:
        body.append(f'<p class="faint">{_prose(missing)}</p>')
    body += _advice(report)
    body += _section("Time", _times(report, figures))
    body += _section("Memory", _memory(report, figures))
    body += _section("Sampling", _sweeps(report, figures))
    body += _section("How it was measured", _measured(report))
    body += _section("Environment", [_table(environment_table(report))])
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(report.title), body="\n".join(body))


def _advice(report: BottleneckReport) -> list[str]:
    items = []
    for advice in report.advice:
        remedy = f"<br>{_prose(advice.remedy)}" if advice.remedy else ""
        items.append(f"<li><strong>{_prose(advice.finding)}</strong>{remedy}</li>")
    if not items:
        return _section("Advice", ["<p>No rule has anything to advise.</p>"])
    return _section("Advice", [f'<ol class="advice">{"".join(items)}</ol>'])


def _times(report: BottleneckReport, figures: Mapping[str, str]) -> Iterable[str]:
    yield figures.get("phases", "")
    yield _table(phase_table(report)) or _lacking("phases")
    yield _table(loading_table(report))
    yield figures.get("layers", "")
    yield _table(layer_table(report, _MOST)) or _lacking("layers")
    yield figures.get("edge_parts", "")
    yield _table(part_table(report, _MOST))
    yield _table(fit_table(report))
    yield _table(validation_table(report))


def _memory(report: BottleneckReport, figures: Mapping[str, str]) -> Iterable[str]:
    yield _table(memory_table(report)) or _lacking("peaks")
    if report.breakdown.expansions:
        yield f"<p>Memory expansion is {_prose(DEFINITIONS['Memory expansion'])}</p>"
    yield figures.get("expansion", "")
    yield figures.get("peaks", "")
    yield _table(peak_table(report))
    yield figures.get("memory", "")
    yield _table(place_table(report, _MOST))
    yield figures.get("tensors", "")
    yield _table(tensor_table(report, _MOST)) or _lacking("tensors")


def _sweeps(report: BottleneckReport, figures: Mapping[str, str]) -> Iterable[str]:
    tables = sweep_tables(report)
    yield figures.get("sampling_sweep", "")
    yield from (_table(table) for table in tables if table.name == "batch_size")
    yield figures.get("graph_sweep", "")
    yield from (_table(table) for table in tables if table.name != "batch_size")


def _measured(report: BottleneckReport) -> Iterable[str]:
    found, facts = report.breakdown, report.facts
    measured = len(facts.peaks_bytes)
    sentence = (
        f"{count(len(report.records.batches), 'step')} recorded: {found.steps:,} timed, {measured:,} with their peak"
        f" memory, {found.memory_steps:,} with memory by layer."
    )
    if facts.overhead is not None:
        sentence += f" The profiler itself took {share(facts.overhead, 1)} of the timed steps."
    yield f"<p>{sentence}</p>"
    terms = (f"<dt>{html.escape(term)}</dt><dd>{_prose(text)}</dd>" for term, text in DEFINITIONS.items())
    yield f"<dl>{''.join(terms)}</dl>"
    if lines := notes(report):
        items = "".join(f"<li>{_prose(line)}</li>" for line in lines)
        yield f"<p>What could not be recorded, or is special:</p><ul>{items}</ul>"


def _section(title: str, parts: Iterable[str]) -> list[str]:
    """A section with its heading; nothing if all its parts are empty."""
    found = [part for part in parts if part]
    return ["<section>", f"<h2>{html.escape(title)}</h2>", *found, "</section>"] if found else []


def _lacking(kind: str) -> str:
    return f'<p class="faint">{_prose(KINDS[kind].missing)}</p>'


def _prose(text: str) -> str:
    """Escape a text; what stands in backticks is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _table(table: Table | None) -> str:
    if table is None:
        return ""

    def cell(place: int, text: str, tag: str, scope: str = "") -> str:
        number = place not in table.texts and any(table.columns)
        style = ' class="number"' if number else ' class="short"' if len(text) <= _SHORT else ""
        return f"<{tag}{scope}{style}>{html.escape(text)}</{tag}>"

    head = "".join(cell(place, text, "th", ' scope="col"') for place, text in enumerate(table.columns))
    lines = []
    for row in table.rows:
        first = cell(0, row[0], "th", ' scope="row"')
        lines.append(f"<tr>{first}{''.join(cell(place, text, 'td') for place, text in enumerate(row[1:], 1))}</tr>")
    heads = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    title = html.escape(table.title)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table id="table-{table.name}">'
        f"<caption>{title}</caption>{heads}<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure(report: BottleneckReport, kind: str, svg: str) -> str:
    drawing = KINDS[kind]
    told = html.escape(drawing.describe(report))
    return (
        f'<figure id="figure-{kind}"><figcaption>{html.escape(drawing.title)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="img" aria-label="{told}">{svg}</div></figure>'
    )


def inline_svg(report: BottleneckReport, kind: str) -> str:
    """Draw a figure as an element of the page.

    Its texts stay texts, so the browser has a glyph for every name; its colours follow the page's; its ids are its own.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If there is no data for it.
    """
    import matplotlib.pyplot as plt

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(inks, _INK) | {"axes.facecolor": _PAPER, "figure.facecolor": "none"}
    style |= {"svg.fonttype": "none", "svg.hashsalt": kind}
    with plt.style.context(["default", style]):
        figure, _ = KINDS[kind](report)
        try:
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        finally:
            plt.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # it would hold for the whole page, which has that rule itself
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg [^>]*?)width="([\d.]+)pt"', r'\1style="max-width: \2pt; min-width: min(44rem, \2pt)"', svg, count=1
    )
    svg = re.sub(r'(<svg [^>]*?)height="[\d.]+pt" ?', r"\1", svg, count=1)
    svg = re.sub(r'(\bid=")', rf"\1{kind}-", svg)
    svg = re.sub(r'((?:xlink:href="|url\()#)', rf"\1{kind}-", svg)
    return svg.replace(_INK, "currentColor").replace(_PAPER, "var(--paper)").strip()
