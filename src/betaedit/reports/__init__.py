"""One self-contained page about measured runs."""

from betaedit.experiments.verdict import Verdict, judge
from betaedit.reports.page import render_report

__all__ = ["Verdict", "judge", "render_report"]
