"""The report: reads runs and writes charts and tables into one self-contained HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, NamedTuple

from betaedit import __version__
from betaedit.errors import ConfigError
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import METRICS, Checkpoint, Mean, WorstPrompt
from betaedit.experiments.side_by_side import Comparison, compare_runs, facts_by_run
from betaedit.experiments.tables import FigureTable, figure_tables, show
from betaedit.experiments.verdict import LIMITS, Verdict, judge, percent, shown_damage
from betaedit.extras import import_extra
from betaedit.reports import charts, figures
from betaedit.reports.charts import Cell, Chart, Cloud, Data, Run

_NONE = "-"
_FACTS_SHOWN = 500
_VERDICTS_SHOWN = 12


class Shown(NamedTuple):
    """A table cell: the figure, and a smaller note below it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure of the page."""

    key: str
    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Table:
    """A table of the page: what is shown beside the plain values it sorts and downloads by, and a note above it."""

    key: str
    title: str
    data: Data
    shown: tuple[tuple[Shown, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers."""
        columns = zip(*self.data.rows, strict=True) if self.data.rows else [()] * len(self.data.columns)
        return tuple(all(isinstance(cell, int | float) or cell is None for cell in column) for column in columns)


def render_report(folders: Sequence[RunFolder], title: str | None = None) -> str:
    """One HTML page about one or several runs, without a single request to anywhere.

    Args:
        folders: The runs, compared with each other.
        title: Its heading; made from the runs' names by default.

    Raises:
        ConfigError: There is no run.
        MissingExtraError: Jinja2 or matplotlib is absent.
        RunFolderError: A checkpoint cannot be read.
    """
    if not folders:
        raise ConfigError("there is no run to report on.", hint="Name one or several run folders.")
    template = _template()
    runs = charts.read_runs(folders)
    sections = _sections(runs)
    views = charts.clouds(runs)
    further = figure_tables({run.name: run.checkpoints for run in runs})
    tables = [_latest(runs), *map(_further, further), *([_differences(runs)] if len(runs) > 1 else [])]
    named = charts.name_folders(folders)
    comparisons = compare_runs(named)
    side_by_side = [table for table in (_comparisons(comparisons), _held(named)) if table]
    worst = [table for run in runs if (table := _worst(run))]
    drawn = [chart for _, _, found in sections for chart in found] + views
    page: str = template.render(
        title=title or f"Editing report: {', '.join(run.name for run in runs)}",
        version=__version__,
        runs=[_run_summary(place, run) for place, run in enumerate(runs)],
        limits=_limits([judge(run.checkpoints) for run in runs]),
        tables=tables,
        comparisons=_latest_comparisons(comparisons),
        verdicts_shown=_VERDICTS_SHOWN,
        side_by_side=side_by_side,
        sections=[(name, text, [_drawn(chart) for chart in found]) for name, text, found in sections],
        clouds=[_drawn(cloud) for cloud in views],
        groups=[(name, figures.draw_marker(place, "group")) for place, name in enumerate(_groups(views))],
        worst=worst,
        data=_embedded({item.key: item.data for item in [*tables, *side_by_side, *worst, *drawn]}),
        style=_resource("report.css"),
        script=_resource("report.js"),
    )  # fmt: skip
    return page


def verdicts(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The verdict of every run with its name and folder, as ``--json`` prints them."""
    return [
        {"run": run.name, "path": run.path, "method": run.setup.method, **judge(run.checkpoints).to_dict()}
        for run in charts.read_runs(folders)
    ]


def side_by_side(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """Every comparison of two runs, and which of them hold each fact, as ``--json`` prints them."""
    named = charts.name_folders(folders)
    edits, facts = facts_by_run(named)
    return {
        "comparisons": [each.to_dict() for each in compare_runs(named)],
        "facts_held": {"edits": edits, "facts": [asdict(fact) for fact in facts]},
    }


def _latest_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons at the last number of edits at which runs can be compared."""
    last = max((each.edits for each in comparisons), default=0)
    return [each for each in comparisons if each.edits == last]


def _comparisons(comparisons: Sequence[Comparison]) -> Table | None:
    """Every comparison at every number of edits."""
    if not comparisons:
        return None
    columns = ("edits", "figure", "first", "second", "facts", "first better", "second better", "p (Holm)", "verdict")
    rows = [
        (c.edits, c.figure, c.first, c.second, c.test.count, c.test.first, c.test.second, c.p, c.verdict)
        for c in comparisons
    ]
    shown = [tuple(Shown(f"{cell:.2g}" if isinstance(cell, float) else str(cell)) for cell in row) for row in rows]
    return Table("comparisons", "Every comparison", Data(columns, tuple(rows)), tuple(shown))


def _held(named: Mapping[str, RunFolder]) -> Table | None:
    """Which runs hold each fact, those on which they differ first."""
    edits, facts = facts_by_run(named)
    if not facts:
        return None
    marks = {True: "held", False: "no", None: _NONE}
    rows = tuple(
        (fact.record, fact.prompt, fact.wanted, *(marks[held] for held in fact.held.values()),
         "yes" if fact.corrected else "no")
        for fact in facts
    )  # fmt: skip
    title = f"Facts held after {edits:,} edit{'' if edits == 1 else 's'}"
    if len(rows) > _FACTS_SHOWN:
        title += f" (the first {_FACTS_SHOWN} of {len(rows):,}; all are in the download)"
    columns = ("fact", "prompt", "new answer", *named, "corrected later")
    shown = tuple(tuple(Shown(str(cell)) for cell in row) for row in rows[:_FACTS_SHOWN])
    return Table("held", title, Data(columns, rows), shown)


def _limits(judged: Sequence[Verdict]) -> list[list[str]]:
    """Every limit with what each run has reached."""
    return [
        [
            limit.name,
            percent(limit.watch),
            percent(limit.collapsed) if math.isfinite(limit.collapsed) else _NONE,
            *(
                shown_damage(verdict.damage[limit.name]) if limit.name in verdict.damage else _NONE
                for verdict in judged
            ),
        ]
        for limit in LIMITS
    ]


def _sections(runs: Sequence[Run]) -> list[tuple[str, str, list[Chart]]]:
    found: list[tuple[str, str, list[Chart]]] = [
        ("The facts", "Do the edits take, and do they stay where they belong?", charts.edit_charts(runs)),
        ("The model around them", "What ordinary text shows.", charts.cost_charts(runs)),
        ("Abilities", "Tasks that have nothing to do with the facts.", charts.ability_charts(runs)),
        ("Further figures", "", charts.measure_charts(runs)),
        ("The weights", "How far the edited layers have moved.", charts.drift_charts(runs)),
        ("Layer by layer", "One line per edited layer, the later the stronger.", charts.layer_charts(runs)),
    ]
    return [section for section in found if section[2]]


def _run_summary(place: int, run: Run) -> dict[str, Any]:
    """A run as the template wants it."""
    verdict: Verdict = judge(run.checkpoints)
    setup = run.setup.model_dump(mode="json")
    return {
        "name": run.name,
        "path": run.path,
        "method": run.setup.method,
        "model": str(run.setup.model.get("name", "unnamed model")),
        "marker": figures.draw_marker(place),
        "verdict": verdict,
        "setup": [(key, list(_flat(setup[key], ""))) for key in setup if isinstance(setup[key], dict) and setup[key]],
        "plain": [(key, _text(setup[key])) for key in setup if not isinstance(setup[key], dict)],
    }


def _latest(runs: Sequence[Run]) -> Table:
    """The last checkpoint of every run, and its unedited one."""
    names = [f"{metric} ({form})" for metric in METRICS for form in ("argmax", "probability")]
    columns = ("run", "edits", *names, "neighbors kept", "perplexity", "agreement", "KL")
    plain: list[tuple[Cell, ...]] = []
    shown: list[tuple[Shown, ...]] = []
    for run in runs:
        for checkpoint in dict.fromkeys([0, -1] if len(run.checkpoints) > 1 else [-1]):
            if run.checkpoints:
                cells, texts = _figures(run.checkpoints[checkpoint])
                plain.append((run.name, *cells))
                shown.append((Shown(run.name), *texts))
    return Table("latest", "First and last checkpoint", Data(columns, tuple(plain)), tuple(shown))


def _further(figures: FigureTable) -> Table:
    """One group of further figures, with intervals."""
    plain: list[tuple[Cell, ...]] = []
    shown: list[tuple[Shown, ...]] = []
    for number, (run, edits, values) in enumerate(figures.rows):
        plain.append((run, edits, *(value.mean if isinstance(value, Mean) else value for value in values)))
        cells = zip(figures.names, values, figures.shown(number), strict=True)
        shown.append((Shown(run), Shown(f"{edits:,}"), *(_further_cell(*cell) for cell in cells)))
    columns = ("run", "edits", *(name.replace("_", " ") for name in figures.names))
    return Table(figures.key, figures.title, Data(columns, tuple(plain)), tuple(shown), figures.note)


def _further_cell(name: str, value: Mean | float | None, text: str) -> Shown:
    return Shown(text, f"{show(name, value.low)}-{show(name, value.high)}") if isinstance(value, Mean) else Shown(text)


def _figures(checkpoint: Checkpoint) -> tuple[list[Cell], list[Shown]]:
    plain: list[Cell] = [checkpoint.edits]
    shown = [Shown(f"{checkpoint.edits:,}")]
    for metric in METRICS:
        for form in ("argmax", "probability"):
            found = getattr(getattr(checkpoint, metric), form)
            plain.append(None if found is None else found.mean)
            shown.append(Shown(_NONE) if found is None else _with_interval(found))
    kept = checkpoint.neighbors_kept
    plain.append(None if kept is None else kept.mean)
    shown.append(Shown(_NONE) if kept is None else _with_interval(kept))
    plain += [checkpoint.perplexity, checkpoint.agreement, checkpoint.kl]
    rest = (
        f"{checkpoint.perplexity:,.2f}",
        f"{checkpoint.agreement:.1%}",
        f"{checkpoint.kl:.3g}",
    )
    return plain, [*shown, *map(Shown, rest)]


def _with_interval(figure: Mean) -> Shown:
    return Shown(f"{figure.mean:.1%}", f"{100 * figure.low:.1f}-{figure.high:.1%}")


def _differences(runs: Sequence[Run]) -> Table:
    """Every setting in which the runs are not all the same."""
    settings = [dict(_flat(run.setup.model_dump(mode="json"), "")) for run in runs]
    names = dict.fromkeys(name for setting in settings for name in setting)
    rows = [(name, *(setting.get(name, _NONE) for setting in settings)) for name in names]
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    return Table(
        "differences",
        "Settings that differ",
        Data(("setting", *(run.name for run in runs)), differing),
        tuple(tuple(map(Shown, row)) for row in differing),
    )


def _worst(run: Run) -> Table | None:
    """The prompts that lost most, as of the last checkpoint that names some."""
    found = next((checkpoint for checkpoint in reversed(run.checkpoints) if checkpoint.worst), None)
    if found is None:
        return None
    fields = tuple(WorstPrompt.model_fields)
    plain = tuple(tuple(getattr(prompt, field) for field in fields) for prompt in found.worst)
    shown = tuple(tuple(Shown(_cell(cell)) for cell in row) for row in plain)
    columns = tuple(field.replace("_", " ") for field in fields)
    return Table(f"worst-{run.name}", f"{run.name}, after {found.edits:,} edits", Data(columns, plain), shown)


def _drawn(chart: Chart | Cloud) -> Drawing:
    svg = figures.draw_cloud(chart) if isinstance(chart, Cloud) else figures.draw_chart(chart)
    return Drawing(chart.key, chart.title, chart.note, svg)


def _groups(views: Sequence[Cloud]) -> list[str]:
    return list(dict.fromkeys(group for cloud in views for group in cloud.view.before))


def _flat(values: Mapping[str, Any], above: str) -> list[tuple[str, str]]:
    """Nested settings as ``outer.inner`` and text."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        rows += _flat(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", _text(value))]
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: Cell) -> str:
    return _NONE if value is None else f"{value:+.2f}" if isinstance(value, float) else str(value)


def _embedded(data: Mapping[str, Data]) -> str:
    """All data as JSON that is safe inside ``<script>``; non-finite figures become null."""
    plain = {
        key: {"columns": found.columns, "rows": [[_finite(cell) for cell in row] for row in found.rows]}
        for key, found in data.items()
    }
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _template() -> Any:
    jinja2 = import_extra("jinja2", "reports", "a report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("report.html.j2"))


def _resource(name: str) -> str:
    return (files("betaedit.reports") / "templates" / name).read_text(encoding="utf-8")
