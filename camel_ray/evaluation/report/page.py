"""The document: head, security policy, sections in reading order.

Model answers and data rows are untrusted text. They are escaped (`markup`), and as a second wall the page forbids every
request and every script but its own, which is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from camel_ray.evaluation.record import RunRecord
from camel_ray.evaluation.report.curves import curves
from camel_ray.evaluation.report.diagram import pipeline_diagram
from camel_ray.evaluation.report.headline import verdict
from camel_ray.evaluation.report.inputs import configuration, data, warnings
from camel_ray.evaluation.report.markup import Html, element, join
from camel_ray.evaluation.report.numbers import moment
from camel_ray.evaluation.report.results import results, samples
from camel_ray.evaluation.report.timeline import timeline


def build_report(run: RunRecord) -> str:
    """The report of a run as one self-contained HTML document; the same record gives the same text.

    Works at any moment of a run: what is not known yet is left out.
    """
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} · camel-ray report"),
        element("style", style),
    )
    body = element(
        "body",
        element(
            "main",
            _header(run),
            verdict(run),
            warnings(run),
            _pipeline(run),
            curves(run),
            results(run),
            samples(run),
            data(run),
            configuration(run),
        ),
        element("script", script),
    )
    return join(Html("<!doctype html>\n"), element("html", head, body, lang="en"), Html("\n"))


def _header(run: RunRecord) -> Html:
    starts = [s.started for s in run.stages if s.started is not None]
    version = run.environment.get("camel-ray")
    facts = [moment(min(starts)) if starts else "not started", f"camel-ray {version}" if version else None]
    return element(
        "header",
        element("h1", run.name),
        element("p", " · ".join(f for f in facts if f)),
    )


def _pipeline(run: RunRecord) -> Html | None:
    if not run.stages:
        return None
    return element(
        "section",
        element("h2", "Pipeline"),
        pipeline_diagram(run),
        timeline(run),
        id="pipeline",
    )


def _asset(name: str) -> Html:
    return Html(files(__package__).joinpath(name).read_text(encoding="utf-8"))
