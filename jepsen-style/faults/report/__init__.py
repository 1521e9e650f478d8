"""One HTML file that shows a run: verdicts, timelines, and the counter-example if there is one."""

from faults.report.facts import NemesisEvent, RunFacts

__all__ = ["NemesisEvent", "RunFacts"]
