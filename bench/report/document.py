"""docs/performance.md: what a run says goes between marks, the rest of the text is written by hand."""

from __future__ import annotations

import re
from pathlib import Path

from bench.contestants import PROJECT
from bench.report.chart import chart
from bench.report.results import Results, against_native, against_rivals
from bench.report.table import ratio, tables

DOCUMENT = PROJECT / "docs/performance.md"
CHART = PROJECT / "docs/performance.svg"

HISTORY_HEAD = (
    "| release | date | medium | player | cores | against the best FUSE rival | against overlayfs |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def write(results: Results, document: Path = DOCUMENT, picture: Path = CHART) -> None:
    """Write the table, the chart, and the release's lines of the history.

    Raises:
        ValueError: the document lacks the marks.
    """
    text = document.read_text()
    picture.write_text(chart(results))
    block = f"![What each row takes, beside kernel overlayfs]({picture.name})\n\n{tables(results)}"
    text = _filled(text, "results", block)
    document.write_text(_filled(text, "history", _history(_between(text, "history"), results)))


def _pattern(mark: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- bench: {mark} -->\n)(.*?)(<!-- bench: end -->)", re.DOTALL)


def _between(text: str, mark: str) -> str:
    found = _pattern(mark).search(text)
    if found is None:
        raise ValueError(f"there is no place for the {mark}")
    return found.group(2)


def _filled(text: str, mark: str, block: str) -> str:
    _between(text, mark)
    return _pattern(mark).sub(lambda found: f"{found.group(1)}{block}\n{found.group(3)}", text)


def _history(before: str, results: Results) -> str:
    """The lines of other releases, then those of this one."""
    version = results.raw["versions"]["fuseunion"]
    kept = [line for line in before.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    kept = [line for line in kept if not line.startswith(("| release ", f"| {version} |"))]
    for where in results.circumstances:
        lines = [line for line in results.lines if line.where == where]
        means = f"{ratio(against_rivals(lines))} | {ratio(against_native(lines))}"
        kept.append(f"| {version} | {results.raw['date'][:10]} | {' | '.join(where)} | {means} |")
    return "\n".join([HISTORY_HEAD, *kept])
