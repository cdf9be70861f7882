"""Charts by matplotlib, as SVG for light and dark pages: one look for reports, comparisons and the documentation."""

from veto_pl.charts.curve import Curve, Envelope
from veto_pl.charts.lines import curve_chart
from veto_pl.charts.picture import key, standalone
from veto_pl.charts.points import Cloud, Row, forest_plot, pareto_front, scatter

__all__ = [
    "Cloud",
    "Curve",
    "Envelope",
    "Row",
    "curve_chart",
    "forest_plot",
    "key",
    "pareto_front",
    "scatter",
    "standalone",
]
