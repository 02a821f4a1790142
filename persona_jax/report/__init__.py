"""The report of a study: PNG figures and one self-contained HTML file.

Everything here draws and renders numbers that a study computed; nothing is estimated.
"""

from persona_jax.report.data import ReportData
from persona_jax.report.figures import draw_all
from persona_jax.report.html import write_report

__all__ = ["ReportData", "draw_all", "write_report"]
