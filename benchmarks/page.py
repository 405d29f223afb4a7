"""The reference page about the benchmarks, made from their results; `make docs` writes it.

Nothing in the page's tables is typed by hand, and neither is the list of what others do better.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.result import RESULTS, Column, Table

_TEXT: Final = Path(__file__).with_name("page.md")
_LIMITS: Final = ("limit: ", "floor: ")
"""Names of contestants that do less than the job begin so."""
_BARS: Final = frozenset({"sink", "gateway", "embedded"})
_LATENCIES: Final = "end_to_end"
_TITLES: Final = {
    "sink": "Kafka to Postgres",
    "gateway": "HTTP to the log",
    "end_to_end": "From the request to the row",
    "embedded": "The embedded mode",
    "killed": "Killed at work",
}


def benchmarks_page() -> str:
    """The whole page, of the results there are."""
    results = {name: read(name) for name in _TITLES if (RESULTS / f"{name}.json").exists()}
    others = {name: read(name) for name in ("scale", "soak") if (RESULTS / f"{name}.json").exists()}
    return "\n".join(page(results, **others)) + "\n"


def three_figures() -> str:
    """What the README says of speed."""
    sink, gateway, path = (read(name) for name in ("sink", "gateway", "end_to_end"))
    took = _ours(path)
    return "\n".join(
        (
            "- **Kafka to Postgres**: one worker stores"
            f" {_ours(sink)['records_per_second']:,.0f} records/s,"
            f" {_beside_the_best(sink, 'records_per_second')}.",
            "- **HTTP to Kafka**: one gateway takes"
            f" {_ours(gateway)['events_per_second_100']:,.0f} events/s, 100 in a request,"
            f" {_beside_the_best(gateway, 'events_per_second_100')}.",
            f"- **From the request to the row**: at {path['settings']['rate']:,} events/s, one in a request,"
            f" half of them are acknowledged within {took['publish_p50_ms']:.0f} ms and can be read within"
            f" {took['stored_p50_ms']:.0f} ms; 99 of 100 within {took['publish_p99_ms']:.0f} and"
            f" {took['stored_p99_ms']:.0f} ms.",
        )
    )


def _ours(result: Mapping[str, Any]) -> Mapping[str, float]:
    """The medians of the contestant that others are compared with."""
    return next(o["median"] for o in result["outcomes"] if o["name"] == result["reference"])


def _beside_the_best(result: Mapping[str, Any], figure: str) -> str:
    rivals = [o for o in result["outcomes"] if _is_rival(o, result) and o["median"].get(figure)]
    best = max(rivals, key=lambda outcome: outcome["median"][figure])
    ratio = _ours(result)[figure] / best["median"][figure]
    return f"{ratio:.1f} times what the fastest of the other programs does ({best['name']})"


def read(name: str) -> dict[str, Any]:
    """A result that was written."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def page(
    results: Mapping[str, Mapping[str, Any]],
    scale: Mapping[str, Any] | None = None,
    soak: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Its lines."""
    yield _TEXT.read_text().rstrip()
    for name, result in results.items():
        yield f"\n## {_TITLES[name]}\n"
        yield f"`python -m benchmarks.{name}`\n"
        for table in _tables(result):
            yield f"### {table.title}\n"
            yield from _markdown(table.rows(result["outcomes"], result["reference"]))
            yield ""
            if name in _BARS:
                yield from _bars(table, result)
        if name == _LATENCIES:
            yield from _percentile_lines(result)
        yield from _left_out(result)
        yield from _conditions(result)
    if scale is not None:
        yield from _growth(scale)
    if soak is not None:
        yield from _memory(soak)
    yield "\n## What others do better\n"
    yield "Every figure above in which another program, not a limit or a floor, is ahead of ours.\n"
    yield from _behind(results)


def _tables(result: Mapping[str, Any]) -> list[Table]:
    return [
        Table(table["title"], [Column(**column) for column in table["columns"]]) for table in result["tables"]
    ]


def _bars(table: Table, result: Mapping[str, Any]) -> Iterator[str]:
    """The first column as a plot, of those who do the whole job, if there are several."""
    first = table.columns[0]
    values = {
        outcome["name"]: outcome["median"][first.figure]
        for outcome in result["outcomes"]
        if first.figure in outcome["median"] and not outcome["name"].startswith(_LIMITS)
    }
    if len(values) > 1:
        title = f"{table.title}: {first.title}"
        yield from _plot(title, first.title, values, [("bar", list(values.values()))])


def _percentile_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Percentiles of ours, one line for each table of latencies."""
    ours = _ours(result)
    tables = [table for table in _tables(result) if all("_ms" in column.figure for column in table.columns)]
    if not ours or not tables:
        return
    columns = [column for column in tables[0].columns if "_p" in column.figure]
    lines = [
        ("line", [ours[column.figure] for column in table.columns if "_p" in column.figure])
        for table in tables
    ]
    title = f"{tables[0].title} (lower line)"
    title += "".join(f"; {table.title} (upper line)" for table in tables[1:])
    yield from _plot(title, "ms", [column.title.removesuffix(" ms") for column in columns], lines)


def _plot(
    title: str, unit: str, labels: Iterable[str], series: Iterable[tuple[str, list[float]]]
) -> Iterator[str]:
    """A plot in the notation of Mermaid, which the usual viewers of Markdown draw."""
    yield "```mermaid"
    yield "xychart-beta"
    yield f'    title "{title}"'
    yield "    x-axis [{}]".format(", ".join(f'"{label}"' for label in labels))
    yield f'    y-axis "{unit}"'
    for kind, values in series:
        yield f"    {kind} [{', '.join(f'{value:g}' for value in values)}]"
    yield "```\n"


def _growth(scale: Mapping[str, Any]) -> Iterator[str]:
    sizes, settings = scale["sizes"], scale["settings"]
    yield "\n## What grows with the number of stored events\n"
    yield (
        "`python -m benchmarks.scale`: one database, filled to each size by the server itself with rows of"
        " the real shape and random keys, over ten days. At each size one worker takes"
        f" {settings['records']:,} records out of Kafka ({settings['rounds']} times; the median), a fifth of"
        " them copies, and the routes of the admin API are asked in turns, each 500 times, or as often as two"
        " minutes allow. WAL grows with the key index: after each checkpoint, the first change to a page is"
        " written with all of it, and random keys find fewer and fewer pages changed before. A period"
        " long past is found through block-range indexes while what may hold it is in memory; else it is"
        " looked for in stretches, and costs more the more was stored since.\n"
    )
    head = ["", *(f"{size['size']:,}" for size in sizes)]
    figures = {
        "records/s": "records_per_second",
        "WAL B/record": "wal_bytes_per_record",
        "tables B/event": "table_bytes_per_event",
        "indexes B/event": "index_bytes_per_event",
    }
    rows = [[title, *(f"{size[name]:,.0f}" for size in sizes)] for title, name in figures.items()]
    for route in sizes[0]["routes"]:
        for percentile in ("p50", "p99"):
            cells = (f"{size['routes'][route][f'{percentile}_ms']:,.1f}" for size in sizes)
            rows.append([f"`{route}` {percentile} ms", *cells])
    yield from _markdown([head, *rows])
    yield ""
    yield from _plot(
        "records/s of one worker, by stored events",
        "records/s",
        head[1:],
        [("line", [size["records_per_second"] for size in sizes])],
    )
    dropped = scale["while_a_day_is_dropped"]
    yield (
        f"While retention drops a day of events at the last size ({dropped['dropping_seconds']:.1f} s), the"
        f" worker stores {dropped['records_per_second']:,.0f} records/s.\n"
    )
    yield from _conditions({**scale, "outcomes": []})


def _memory(soak: Mapping[str, Any]) -> Iterator[str]:
    settings = soak["settings"]
    yield "\n## Memory over time\n"
    yield (
        f"`python -m benchmarks.soak`: {settings['minutes']:g} minutes at {settings['rate']} events/s, a"
        f" fifth of them copies, {settings['batch']} in a request, while the admin API is asked every five"
        " seconds; then nothing to do. Growth is that of the last quarter: SQLite's page cache, 64 MiB,"
        " takes a while to fill.\n"
    )
    rows = [["role", "MB after a minute", "median MB", "most MB", "growth MB/h", "CPU with nothing to do"]]
    for role, figures in soak["figures"].items():
        sizes = (
            f"{round(figures[name], 1) + 0.0:,.1f}" for name in ("early", "median", "most", "growth_per_hour")
        )
        rows.append([role, *sizes, f"{figures['idle_percent']:.1f} %"])
    yield from _markdown(rows)


def _markdown(rows: list[list[str]]) -> Iterator[str]:
    head, *body = rows
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in body:
        yield f"| {' | '.join(row)} |"


def _left_out(result: Mapping[str, Any]) -> Iterator[str]:
    for outcome in result["outcomes"]:
        if outcome["left_out"]:
            yield f"- Left out: {outcome['name']}. {_in_one_line(outcome['left_out'])}"
        elif outcome["failures"]:
            yield f"- {outcome['name']} failed in a round: {_in_one_line(outcome['failures'][0])}"
    yield ""


def _conditions(result: Mapping[str, Any]) -> Iterator[str]:
    machine, versions = result["machine"], result["versions"]
    load = " ".join(f"{value:.2f}" for value in result["load_average_at_start"])
    build = f" ({versions['python_build']})" if "python_build" in versions else ""
    yield (
        f"Measured {result['measured_at'][:16].replace('T', ' ')} UTC on {machine['processor']},"
        f" {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['system']}; load average at the"
        f" start {load}; event-aggregator {versions['event-aggregator']}, Python {versions['python']}{build}."
    )
    if result["load_average_at_start"][0] > machine["cores"] / 4:
        yield (
            "**The machine was busy with other work at the same time.** Rates are lower and latencies higher"
            " than on a quiet one; CPU time per event and ratios are what can be read from these tables."
        )
    yield f"Settings: {_settings(result['settings'])}.\n"
    for outcome in result["outcomes"]:
        if outcome["rounds"]:
            yield f"- **{outcome['name']}**: {_settings(outcome['settings'])}"


def _behind(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    any_ = False
    for name, result in results.items():
        reference = next((o for o in result["outcomes"] if o["name"] == result["reference"]), None)
        for table in _tables(result) if reference else ():
            for column in table.columns:
                ours = reference["median"].get(column.figure) if reference else None
                for outcome in result["outcomes"]:
                    theirs = outcome["median"].get(column.figure)
                    if not _is_rival(outcome, result) or not ours or not theirs:
                        continue
                    if (theirs > ours) == column.more_is_better and theirs != ours:
                        any_ = True
                        yield (
                            f"- {_TITLES[name]}, {table.title}, {column.title}: {outcome['name']}"
                            f" {column.cell(theirs)}, ours {column.cell(ours)}"
                        )
    if not any_:
        yield "None."


def _is_rival(outcome: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    name: str = outcome["name"]
    # Ours in other circumstances begins with the name of ours.
    return not name.startswith((*_LIMITS, "aggregator", result["reference"]))


def _settings(settings: Mapping[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        shown = f"({_settings(value)})" if isinstance(value, Mapping) else _in_one_line(str(value))
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
