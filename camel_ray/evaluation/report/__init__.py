"""The report: one HTML file that needs nothing else, made from a `RunRecord`.

    page.py      the document, its security policy and the order of the sections
    headline.py  the verdict and the three results that decide whether a run was worth it
    diagram.py   the pipeline as a picture          timeline.py  when each stage ran
    curves.py    which curves a stage has           charts.py    one line chart       series.py  events to points
    results.py   metrics table and samples          inputs.py    data counts, warnings, configuration, environment
    markup.py    HTML that escapes by construction  numbers.py   figures as text
    page.css, page.js                               style, and the values under the pointer

The same record always gives the same bytes: no clock, no random ids.
"""

from camel_ray.evaluation.report.page import build_report

__all__ = ["build_report"]
