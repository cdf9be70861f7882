"""One HTML file that tells what one or several training runs did."""

from veto_pl.report.run import Run
from veto_pl.report.run_report import write_report
from veto_pl.report.table import ResultTable

__all__ = ["ResultTable", "Run", "write_report"]
