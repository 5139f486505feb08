"""``betaedit demo``: edits of the bundled model, without any preparation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from betaedit.editors.editor import Editor
    from betaedit.editors.method import EditResult
    from betaedit.facts.fact import EvaluationCase

_NEIGHBORS_SHOWN = 6
_ANSWER_TOKENS = 3
_STATISTICS_TOKENS = 16_384  # two blocks of sampled text keep the demo short


def demo(
    limit: Annotated[int, typer.Option("--limit", min=1, max=120, help="Number of facts.")] = 20,
    method: options.MethodOption = "betaedit",
    preset: options.PresetOption = None,
    seed: options.SeedOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Write invented answers to real-world questions into the default model, and show each result."""
    from rich.console import Console

    from betaedit.cli.render import Bars, summary_table
    from betaedit.experiments.run import run_edits
    from betaedit.facts.readers import demo_path, read_cases

    console = Console(stderr=json_)
    console.print("[bold]Loading smollm2[/] (the first time it is converted from its wheel, about half a minute)")
    cases = list(read_cases(demo_path(), limit=limit).cases)
    editor = options.load_editor(
        "smollm2",
        method,
        dtype="float32",
        device=None,
        device_map=None,
        preset=preset,
        values={"statistics_tokens": _STATISTICS_TOKENS, **options.given(None, seed)},
        statistics=None,
        progress=Bars(console),
    )
    editor.prepare()
    watch = _Watch(editor, cases, console)
    report = run_edits(editor, cases, on_edit=watch)
    watch.show_neighbors()
    console.print(summary_table(report))
    if json_:
        options.print_json(report.to_dict())


class _Watch:
    """Prints each fact as it is written: what the model said before, and what it says now."""

    def __init__(self, editor: Editor, cases: list[EvaluationCase], console: Console) -> None:
        self._editor, self._console = editor, console
        self._n_facts = len(cases)
        self._before = {case.fact.text: self._answer(case.fact.text) for case in cases}
        probes = [case.neighbors[0].prompt for case in cases if case.neighbors][:_NEIGHBORS_SHOWN]
        self._neighbors = {prompt: self._answer(prompt) for prompt in probes}
        self._n_written = 0

    def __call__(self, result: EditResult) -> None:
        from rich.markup import escape

        self._n_written += 1
        text = result.fact.text
        self._console.print(
            f"[dim]{self._n_written:>3}/{self._n_facts}[/] {escape(text)}  "
            f"[red]{escape(self._before[text])}[/] -> [bold green]{escape(self._answer(text))}[/]  "
            f"[dim]{result.seconds:.1f} s[/]",
            highlight=False,
        )

    def show_neighbors(self) -> None:
        """What the model says about subjects that were not edited, before and after all edits."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="what else changed: neighbors of the edited facts")
        for name in ("prompt", "before", "after all edits"):
            table.add_column(name)
        for prompt, was in self._neighbors.items():
            now = self._answer(prompt)
            table.add_row(Text(prompt), Text(was), Text(now, style="green" if now == was else "yellow"))
        self._console.print(table)

    def _answer(self, prompt: str) -> str:
        from betaedit.cli.render import one_line

        return one_line(self._editor.complete(prompt, _ANSWER_TOKENS))
