"""One self-contained page about measured runs."""

from betaedit.reports.page import render_report
from betaedit.reports.verdict import Verdict, judge

__all__ = ["Verdict", "judge", "render_report"]
