"""The report holds every figure, escapes all data, and needs nothing but itself."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from betaedit.errors import ConfigError, MissingExtraError
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import METRICS, WorstPrompt
from betaedit.reports import charts, figures, render_report
from betaedit.reports.page import verdicts
from support.runs import BARE, TASKS, checkpoint, fabricate, figure, mean, outcome, setup

DRIFT = ("leakage", "statistics_text_leakage", "weight_change")
HOSTILE = "<script>alert('x')</script> & \"quoted\""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    root = tmp_path_factory.mktemp("runs")
    return [fabricate(root / name, name, damage=d) for name, d in (("betaedit", 0.02), ("rect", 0.2), ("memit", 0.98))]


@pytest.fixture(scope="module")
def page(folders: list[RunFolder]) -> str:
    return render_report(folders)


def embedded(page: str) -> dict[str, dict[str, list]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


class Outline(HTMLParser):
    """Every start tag with its attributes, and whether all tags close in order."""

    VOID = ("meta", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_figure_of_three_runs_is_there(page: str) -> None:
    expected = {
        *(f"{metric}-{form}" for metric in METRICS for form in ("argmax", "probability")),
        "perplexity", "agreement", "kl",
        *(f"ability-{task}" for task in TASKS),
        "measure-fluency", "measure-portability",
        *(f"{field}-{kind}" for field in DRIFT for kind in ("mean", "by-layer")),
        *(f"{field}-layers-{run}" for field in DRIFT for run in (1, 2, 3)),
        *(f"hidden-{run}" for run in (1, 2, 3)),
    }  # fmt: skip
    assert page.count("<figure>") == len(expected)
    assert expected <= embedded(page).keys()


def test_every_table_and_figure_can_be_downloaded_in_both_forms(page: str) -> None:
    buttons = [attrs for tag, attrs in Outline(page).tags if tag == "button" and "data-key" in attrs]
    for form in ("csv", "json"):
        keys = [attrs["data-key"] for attrs in buttons if attrs["data-form"] == form]
        assert sorted(keys) == sorted(embedded(page))


def test_the_data_are_those_of_the_checkpoints(folders: list[RunFolder], page: str) -> None:
    found = embedded(page)["efficacy-argmax"]
    assert found["columns"] == ["run", "edits", "value", "low", "high", "count"]
    point = folders[1].checkpoint(300).efficacy.argmax
    assert point is not None
    assert ["rect", 300, point.mean, point.low, point.high, point.count] in found["rows"]
    layers = embedded(page)["leakage-layers-3"]["rows"]
    assert ["layer 9", 1000, folders[2].checkpoint(1000).layers[9].relative_leakage, None, None, None] in layers


def test_the_verdict_stands_first(page: str) -> None:
    text = page[: page.index("<table")]
    assert re.findall(r'<article class="card (\w+)">', text) == ["safe", "watch", "collapsed"]
    assert "The collapse began after 500 edits and was seen at 600." in text


def test_three_runs_of_ten_checkpoints_stay_below_three_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_nothing_is_asked_of_the_network(page: str) -> None:
    for _, attrs in Outline(page).tags:
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)|https?://", page)


def test_the_markup_closes_in_order_and_no_id_occurs_twice(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert set(used) <= set(ids)


def test_figures_have_the_colors_of_the_page(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert all(not re.search(r"#[0-9a-f]{6}", drawing) for drawing in drawings)
    assert any("var(--run-2)" in drawing for drawing in drawings)


def test_every_layer_has_its_line_and_the_unedited_states_are_hollow(folders: list[RunFolder]) -> None:
    runs = charts.read_runs(folders)
    lines = re.findall(r'<path d="[^"]*" [^>]*style="fill: none; stroke: var\(--run-0\); stroke-opacity: ([\d.]+)',
                       figures.draw_chart(charts.layer_charts(runs)[0]))  # fmt: skip
    assert [float(strength) for strength in lines] == [0.55, 0.7, 0.85]  # the last, of 1, has none to write
    cloud = figures.draw_cloud(charts.clouds(runs)[0])
    assert len(re.findall(r"<use [^>]*fill: none;[^>]*stroke: var\(--group-1\)", cloud)) == 60
    assert len(re.findall(r"<use [^>]*fill: var\(--group-1\)", cloud)) == 60


def test_tables_can_be_sorted_by_keyboard_and_told_apart_by_ear(page: str) -> None:
    heads = re.findall(r'<th scope="col"[^>]*aria-sort="none"><button type="button">', page)
    sortable = re.findall(r'<table class="(?:figures|prose)">', page)
    assert len(sortable) == 7 + 4  # a group of further figures each
    assert len(heads) > 5 * 4


def test_data_cannot_become_markup(tmp_path: Path) -> None:
    worst = WorstPrompt(
        kind="neighbor", prompt=HOSTILE, wanted=HOSTILE, other=None, margin_before=1.0, margin_after=-1.0,
        text_before=HOSTILE, text_after=HOSTILE,
    )  # fmt: skip
    folder = RunFolder.create(tmp_path / "<b>run", setup("<i>", note=HOSTILE))
    folder.write_checkpoint(checkpoint(0, **BARE))
    folder.write_checkpoint(checkpoint(5, **{**BARE, "worst": [worst], "measures": {"<u>measure": 1.0}}))
    page = render_report([folder], title=HOSTILE)
    tags = {tag for tag, _ in Outline(page).tags}
    assert not tags & {"b", "i", "u"}
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(" in page
    assert embedded(page)["worst-<b>run"]["rows"][0][1] == HOSTILE


def test_further_figures_have_a_table_per_group_with_intervals_and_plain_values(tmp_path: Path) -> None:
    measures = {"reliability": mean(0.5, 40), "logical_generalization": mean(0.25, 40), "memory to answer": 2048.0}
    folder = RunFolder.create(tmp_path / "run", setup())
    folder.write_checkpoint(checkpoint(5, **{**BARE, "measures": measures}))
    page = render_report([folder])
    data = embedded(page)
    assert data["questions"] == {
        "columns": ["run", "edits", "reliability", "logical generalization"], "rows": [["run", 5, 0.5, 0.25]]
    }  # fmt: skip
    assert data["costs"]["rows"] == [["run", 5, 0.8, 2048.0]]
    assert re.search(r">50.0%<small>35.2%-64.8%</small>", page)
    assert ">2.0 KiB</td>" in page
    assert "memory to answer, to edit: beside the model" in page


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", setup())
    none = figure(None, None)
    folder.write_checkpoint(checkpoint(5, efficacy=figure(None, 1.0), generality=none, specificity=none, **BARE))
    page = render_report([folder])
    assert embedded(page).keys() == {"latest", "costs", "efficacy-argmax", "perplexity", "agreement", "kl"}
    assert "Abilities" not in page
    assert "Hidden states" not in page


def test_a_run_that_has_not_been_measured_yet_is_still_a_page(tmp_path: Path) -> None:
    assert "No facts written yet." in render_report([RunFolder.create(tmp_path, setup())])


def test_a_broken_model_is_drawn_without_its_infinite_figures(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, setup())
    for edits, perplexity in ((0, 20.0), (5, 2000.0), (10, math.inf), (15, math.nan)):
        folder.write_checkpoint(checkpoint(edits, perplexity=perplexity, **BARE))
    rows = embedded(render_report([folder]))["perplexity"]["rows"]
    assert [row[2] for row in rows] == [20.0, 2000.0, None, None]


def test_a_perplexity_that_explodes_is_a_collapse_dated_by_its_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, setup())
    for edits, perplexity in ((0, 20.0), (50, 20.5), (100, 21.0), (150, 4_000.0), (200, 1e9)):
        folder.write_checkpoint(checkpoint(edits, perplexity=perplexity, **BARE))
    page = render_report([folder])
    assert re.findall(r'<article class="card (\w+)">', page) == ["collapsed"]
    text = " ".join(re.sub(r"<[^>]*>", " ", page[: page.index("<table")]).split())
    assert "The model is no longer usable: perplexity up 50,000,000-fold." in text
    assert "The collapse began after 100 edits and was seen at 150." in text
    assert "200 facts written" in text
    assert verdicts([folder])[0]["collapse"] == 150


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    pair = [fabricate(tmp_path / place / "run", steps=1, changes=BARE) for place in "ab"]
    page = render_report(pair, title="Twice")
    assert "<h1>Twice</h1>" in page
    assert {row[0] for row in embedded(page)["kl"]["rows"]} == {"run (1)", "run (2)"}


def test_settings_that_differ_are_listed(page: str) -> None:
    assert embedded(page)["differences"] == {
        "columns": ["setting", "betaedit", "rect", "memit"],
        "rows": [["method", "betaedit", "rect", "memit"]],
    }


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    folder = fabricate(tmp_path, steps=1, changes=BARE)
    assert render_report([folder]) == render_report([folder])


def test_no_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="no run"):
        render_report([])


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_an_absent_library_is_named_with_the_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"betaedit\[reports\]"):
        render_report([fabricate(tmp_path, steps=1, changes=BARE)])


def test_color_and_marker_together_tell_many_runs_apart() -> None:
    looks = {(place % figures.COLORS, figures._marker(place)) for place in range(64)}
    assert len(looks) == 64


# Runs side by side


def pair(tmp_path: Path, first: str, second: str, number: int = 1) -> list[RunFolder]:
    """Two runs that hold the facts with a ``+``, every fact ``number`` times."""
    runs = []
    for name, held in (("a", first * number), ("b<i>", second * number)):
        folder = RunFolder.create(tmp_path / name, setup())
        facts = [
            outcome(str(n)).model_copy(update={"argmax": sign == "+", "prompt": f"<u>{n}"})
            for n, sign in enumerate(held)
        ]
        for edits in (4, 9):
            folder.write_checkpoint(checkpoint(edits, **BARE), facts)
        runs.append(folder)
    return runs


@pytest.mark.parametrize(
    ("first", "second", "told", "kind"),
    [
        ("+" * 14 + "--", "-" * 14 + "++", "a holds more facts than b&lt;i&gt; (p = 0.0042, 14 facts against 2)",
         "decided"),
        ("-" * 9, "+" * 9, "b&lt;i&gt; holds more facts than a (p = 0.0039, 9 facts against 0)", "decided"),
        ("+-+", "+--",
         "facts held: too few facts to tell a and b&lt;i&gt; apart (p = 1; about 18 facts would be needed)", "open"),
    ],
)  # fmt: skip
def test_the_verdict_says_whether_runs_can_be_told_apart(
    tmp_path: Path, first: str, second: str, told: str, kind: str
) -> None:
    page = render_report(pair(tmp_path, first, second))
    assert f'<li class="{kind}">{told}</li>' in page
    assert "Side by side, after 9 edits" in page
    assert page.count('<li class="') == 1
    rows = embedded(page)["comparisons"]["rows"]
    assert [row[0] for row in rows] == [4, 9]


def test_of_many_comparisons_only_those_that_are_decided_stand_in_the_verdict(tmp_path: Path) -> None:
    runs = []
    for name in "abcdef":
        runs.append(RunFolder.create(tmp_path / name, setup()))
        held = [outcome(str(n)).model_copy(update={"argmax": name == "c"}) for n in range(30)]
        runs[-1].write_checkpoint(checkpoint(30, **BARE), held)
    page = render_report(runs)
    assert page.count('<li class="decided">c holds more facts than') == 5
    assert page.count('<li class="open">') == 1
    assert "10 more cannot be told apart; they are listed under “Every comparison”." in page
    assert len(embedded(page)["comparisons"]["rows"]) == 15


def test_facts_are_listed_by_run_those_on_which_runs_differ_first(tmp_path: Path) -> None:
    held = embedded(render_report(pair(tmp_path, "+-+-", "+--+")))["held"]
    assert held["columns"] == ["fact", "prompt", "new answer", "a", "b<i>", "corrected later"]
    assert [(row[0], row[3], row[4]) for row in held["rows"]] == [
        ("2", "held", "no"), ("3", "no", "held"), ("1", "no", "no"), ("0", "held", "held"),
    ]  # fmt: skip


def test_a_long_list_of_facts_is_shown_in_part_and_downloaded_whole(tmp_path: Path) -> None:
    page = render_report(pair(tmp_path, "+-", "++", number=400))
    assert "the first 500 of 800; all are in the download" in page
    assert len(embedded(page)["held"]["rows"]) == 800
    assert page.count("&lt;u&gt;") == 500


def test_one_run_is_compared_with_none(tmp_path: Path) -> None:
    page = render_report(pair(tmp_path, "+-", "++")[:1])
    assert "Side by side" not in page
    assert "comparisons" not in embedded(page)
    assert len(embedded(page)["held"]["rows"]) == 2


def test_coinciding_lines_differ_in_pattern_width_and_marker(folders: list[RunFolder]) -> None:
    drawn = figures.draw_chart(charts.cost_charts(charts.read_runs(folders))[0])
    styles = [
        re.search(rf"fill: none;(?: stroke-dasharray: (?P<dashes>[^;]*);)?[^\"]*stroke: var\(--run-{place}\)"
                  r"[^\"]*stroke-width: (?P<width>[\d.]+)", drawn)
        for place in range(3)
    ]  # fmt: skip
    looks = [(style["dashes"], float(style["width"])) for style in styles if style]
    assert len({dashes for dashes, _ in looks}) == 3
    widths = [width for _, width in looks]
    assert widths == sorted(widths, reverse=True)


def test_lines_are_named_at_their_ends_where_there_are_several(folders: list[RunFolder]) -> None:
    several = figures.draw_chart(charts.cost_charts(charts.read_runs(folders))[0])
    assert all(f">{name}</text>" in several for name in ("betaedit", "rect", "memit"))
    one = figures.draw_chart(charts.cost_charts(charts.read_runs(folders[:1]))[0])
    assert ">betaedit</text>" not in one


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=30), st.floats(0.01, 0.3))
def test_labels_keep_their_order_stay_inside_and_do_not_overlap(heights: list[float], apart: float) -> None:
    places = figures.spread(sorted(heights), apart)
    assert len(places) == len(heights)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    room = min(apart, 1 / max(len(heights) - 1, 1))
    assert all(b - a >= room - 1e-9 for a, b in itertools.pairwise(places))


def test_labels_that_are_far_apart_stay_where_their_lines_end() -> None:
    assert figures.spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert figures.spread([0.5, 0.5], 0.1) == pytest.approx([0.5, 0.6])
    assert figures.spread([1.0, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


CHROMIUM = Path("/usr/bin/chromium")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_a_browser_runs_the_page_and_finds_no_sideways_scroll(page: str, tmp_path: Path) -> None:
    probe = """<script>
    addEventListener("error", (event) => document.body.dataset.failed = event.message);
    addEventListener("load", () => {
      const headers = [...document.querySelectorAll("table.figures th")];
      const header = headers.find((th) => th.textContent.trim() === "perplexity");
      header.firstChild.click(); header.firstChild.click();
      const rows = [...header.closest("table").tBodies[0].rows];
      document.body.dataset.sorted = rows.map((row) => row.cells[header.cellIndex].dataset.value).join(" ");
      document.body.dataset.order = header.getAttribute("aria-sort");
      const frame = document.createElement("iframe");
      frame.style.cssText = "width: 360px; height: 800px; border: 0";
      frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*<\\/script>/, "");
      frame.onload = () => {
        const inner = frame.contentDocument.documentElement;
        document.body.dataset.wide = inner.scrollWidth - inner.clientWidth;
      };
      document.body.append(frame);
    });
    </script>"""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    body = dict(re.findall(r'data-(failed|sorted|order|wide)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout)[0]))  # type: ignore[index]
    assert "failed" not in body
    values = [float(value) for value in body["sorted"].split()]
    assert values == sorted(values, reverse=True)
    assert body["order"] == "descending"
    assert body["wide"] == "0"
