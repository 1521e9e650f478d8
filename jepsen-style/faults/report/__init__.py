"""One HTML file that shows a run: verdicts, timelines, and the counter-example if there is one."""

from faults.report.facts import NemesisEvent, RunFacts
from faults.report.page import write_report

__all__ = ["NemesisEvent", "RunFacts", "write_report"]
