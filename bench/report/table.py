"""The Markdown of a run."""

from __future__ import annotations

from bench.report.results import NATIVE, OURS, Line, Results, Spread, against_native, against_rivals

SHOWN_BESIDE = ("kernel", "ranch", "unionfs-fuse", "fuse-overlayfs", "plain", "empty")
"""Those that have a column of medians of their own, besides the two that the ratios are of."""


def value(number: float, unit: str) -> str:
    """A value with its unit, in three digits."""
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if abs(number) * factor >= 1:
                return f"{number * factor:.3g} {name}"
        return f"{number * 1e6:.3g} µs"
    if unit == "bytes":
        for factor, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if abs(number) >= factor:
                return f"{number / factor:.3g} {name}"
        return f"{number:.0f} B"
    return f"{number:.0f}"


def spread(values: Spread | None, unit: str) -> str:
    """A median with the least and the most."""
    if values is None:
        return "–"
    return f"{value(values.median, unit)} ({value(values.least, unit)} .. {value(values.most, unit)})"


def ratio(number: float | None) -> str:
    """A ratio, bold where fuseunion is ahead."""
    if number is None:
        return "–"
    return f"**{number:.2f}**" if number < 1 else f"{number:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: Line, beside: list[str]) -> str:
    def of(name: str) -> str:
        return "failed" if name in line.trouble else spread(line.values.get(name), line.unit)

    rival = line.best_rival
    best = f"{rival} {value(line.values[rival].median, line.unit)}" if rival else "–"
    others = [
        "failed" if name in line.trouble else value(line.values[name].median, line.unit) if name in line.values else "–"
        for name in beside
    ]
    return _row(line.label, of(OURS), best, ratio(line.ratio(rival)), of(NATIVE), ratio(line.ratio(NATIVE)), *others)


def tables(results: Results) -> str:
    """A table for each set of circumstances, then what was not run and what failed."""
    parts = [facts(results)]
    peers = [text.partition("=")[0] for text in results.raw["peers"]]
    for where in results.circumstances:
        lines = [line for line in results.lines if line.where == where]
        there = {name for line in lines for name in (*line.values, *line.trouble)}
        beside = [name for name in (*SHOWN_BESIDE, *peers) if name in there]
        head = ["row", "fuse", "best FUSE rival", "ratio", NATIVE, "ratio", *beside]
        rows = [_row(*head), _row(*["---"] * len(head)), *(_cells(line, beside) for line in lines)]
        means = [ratio(against_rivals(lines)), "", ratio(against_native(lines))]
        rows.append(_row("geometric mean", "", "", *means, *[""] * len(beside)))
        company = "cores idle" if where.condition == "idle" else "one core kept busy"
        who = "root" if where.player == "root" else "an ordinary user"
        parts.append(f"### {where.medium}, {who}, {company}\n\n" + "\n".join(rows))
    for title, texts in (("Not run", results.not_run), ("Failed, or wrong", results.failed)):
        if texts:
            parts.append(f"### {title}\n\n" + "\n".join(f"- {_escaped(text)}" for text in texts))
    says = dict.fromkeys((line.row, line.says) for line in results.lines)
    sizes: dict[str, list[str]] = {}
    for name, text in says:
        sizes.setdefault(name, []).append(text)
    described = [f"- {name}: {'; '.join(dict.fromkeys(texts))}" for name, texts in sizes.items()]
    parts.append("### The rows\n\n" + "\n".join(described))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def facts(results: Results) -> str:
    """What the numbers depend on."""
    raw = results.raw
    machine = ", ".join(f"{name} {fact}" for name, fact in raw["machine"].items())
    versions = ", ".join(f"{name} {fact}" for name, fact in raw["versions"].items())
    rounds = f"{raw['rounds']} rounds, scale {raw['scale']}"
    return f"{raw['date'][:10]}, {rounds}. Machine: {machine}. Versions: {versions}."
