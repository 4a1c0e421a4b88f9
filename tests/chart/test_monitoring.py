"""Prometheus reads what the chart brings for it: which alert fires when, what each panel of the dashboard shows.

`promtool` of the rig evaluates the rendered expressions over series that are written here, in its notation: `1x20` is a
1 and 20 more, `0+2x60` grows by 2 each step, `_` is no sample. A step is half a minute. No series has a name or a label
that the operator does not export, so an expression that asks for anything else finds nothing.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from camel_ray.api.status import Outcome
from camel_ray.operator.main import LEASE
from camel_ray.operator.metrics import CONTROLLER, Metrics
from rig.helm import CHART, NAMESPACE, Helm, objects
from rig.process import find_tools

JOB, OTHER = "camel-ray-operator", "team-b"
"""The Service whose pods Prometheus reads, and the namespace of a second release, where it has the same name."""
LEADER, FOLLOWER = "operator-0", "operator-1"
TARGET = {"job", "namespace", "pod", "instance"}
"""Labels that Prometheus adds to whatever it reads (those of the Prometheus operator, as far as they are used)."""
STEP = "30s"
DAY = 86400


@dataclass(frozen=True)
class Series:
    """A series, and its samples in promtool's notation."""

    name: str
    labels: Mapping[str, str]
    values: str

    @property
    def wire(self) -> dict[str, str]:
        labels = ",".join(f"{key}={json.dumps(value)}" for key, value in self.labels.items())
        return {"series": f"{self.name}{{{labels}}}", "values": self.values}

    def moved(self, namespace: str) -> Series:
        """The same of another release."""
        return replace(self, labels={**self.labels, "namespace": namespace})


@functools.cache
def exported() -> Mapping[str, Mapping[str, set[str]]]:
    """All series of an operator that has done everything once: values by label, by name."""
    metrics = Metrics()
    metrics.count_pipelines_with(dict)
    metrics.read_ages_with(lambda: {"pods": 1.0})
    metrics.read_certificate_expiry_with(float)
    metrics.request_observer("kubernetes:443")("get", "200", 0.1)
    metrics.leads(LEASE, True)
    metrics.attempt_queued("sft", 1.0)
    metrics.attempt_running("sft", 1.0)
    for outcome in get_args(Outcome):
        metrics.attempt_ended("sft", outcome, 1.0)
    metrics.progress_report(200)
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def series(name: str, values: str, pod: str = LEADER, /, *, namespace: str = NAMESPACE, **labels: str) -> Series:
    """A series as Prometheus has it of one replica."""
    place = {"job": JOB, "namespace": namespace, "pod": pod, "instance": f"{pod}.{namespace}:8080"}
    return Series(name, {**place, **labels}, values)


def up(values: str, pod: str = LEADER, *, namespace: str = NAMESPACE) -> Series:
    return series("up", values, pod, namespace=namespace)


def leads(values: str, pod: str = LEADER, *, namespace: str = NAMESPACE) -> Series:
    return series("leader_election_master_status", values, pod, namespace=namespace, name=LEASE)


def age(values: str, pod: str = LEADER, kind: str = "pods") -> Series:
    return series("camel_ray_reflector_age_seconds", values, pod, kind=kind)


def errors(values: str, pod: str = LEADER) -> Series:
    return series("controller_runtime_reconcile_errors_total", values, pod, controller=CONTROLLER)


def attempts(outcome: str, values: str, pod: str = LEADER, *, kind: str = "sft", namespace: str = NAMESPACE) -> Series:
    return series("camel_ray_attempts_total", values, pod, namespace=namespace, kind=kind, outcome=outcome)


def certificate(values: str, pod: str = LEADER) -> Series:
    return series("camel_ray_progress_certificate_expiry_seconds", values, pod)


def promtool(*arguments: str) -> str:
    """What it prints. Raises AssertionError with that if it is not content."""
    command = [str(find_tools("promtool")["promtool"]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_rules(groups: object, file: Path) -> str:
    file.write_text(json.dumps(groups))
    return promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))


def evaluate(directory: Path, given: Sequence[Series], *, rules: Sequence[object] = (), **expected: object) -> None:
    """Asserts what is expected, in promtool's words, of these series and groups of rules."""
    for one in given:
        assert set(one.labels) - TARGET == set(exported()[one.name]), one
    files = [directory / f"rules-{number}.json" for number in range(len(rules))]
    for file, groups in zip(files, rules, strict=True):
        file.write_text(json.dumps(groups))
    test = {"interval": STEP, "input_series": [one.wire for one in given], **expected}
    file = directory / "test.json"
    every = {"rule_files": [str(file) for file in files], "evaluation_interval": STEP, "fuzzy_compare": True}
    file.write_text(json.dumps({**every, "tests": [test]}))
    promtool("test", "rules", str(file))


@pytest.fixture(scope="module")
def rendered(helm3: Helm, everything: dict[str, object]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return objects(helm3.template(everything))


@pytest.fixture(scope="module")
def rules(rendered: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered[("PrometheusRule", NAMESPACE, JOB)]["spec"]
    return spec


@pytest.fixture(scope="module")
def dashboard(rendered: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    text = rendered[("ConfigMap", NAMESPACE, "camel-ray-dashboard")]["data"]["camel-ray.json"]
    found: dict[str, Any] = json.loads(text)
    assert found == json.loads((CHART / "files/dashboard.json").read_text())
    return found


def alert(rules: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = (rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == name)
    return dict(found)


def queries(dashboard: Mapping[str, Any], namespaces: str = NAMESPACE) -> dict[tuple[str, str], str]:
    """Expressions by title and legend, with this choice of namespaces, as Grafana sends them."""
    found = {}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$job", JOB).replace("$namespace", namespaces)
            assert "$" not in text, "a variable that the dashboard does not have"
            found[panel["title"], target["legendFormat"]] = text
    return found


def test_prometheus_accepts_the_alerts(rules: dict[str, Any], tmp_path: Path) -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in check_rules(rules, tmp_path / "rules.json")
    broken = json.loads(json.dumps(rules).replace("absent(", "absent(("))
    with pytest.raises(AssertionError, match="could not parse expression"):
        check_rules(broken, tmp_path / "broken.json")


def test_prometheus_accepts_every_query_of_the_dashboard(dashboard: dict[str, Any], tmp_path: Path) -> None:
    records = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(queries(dashboard).values())]
    said = check_rules({"groups": [{"name": "panels", "rules": records}]}, tmp_path / "rules.json")
    assert f"SUCCESS: {len(records)} rules found" in said
    assert len(records) == sum(len(panel["targets"]) for panel in dashboard["panels"])


def test_prometheus_reads_the_service_under_the_name_that_the_alerts_ask_for(
    rendered: dict[tuple[str, str, str], dict[str, Any]], rules: dict[str, Any]
) -> None:
    monitor = rendered[("ServiceMonitor", NAMESPACE, JOB)]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [o for (kind, _, _), o in rendered.items() if kind == "Service"]
    (service,) = (o for o in services if wanted <= o["metadata"]["labels"].items())
    assert {e["port"] for e in monitor["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    place = {"job": service["metadata"]["name"], "namespace": service["metadata"]["namespace"]}
    for rule in rules["groups"][0]["rules"]:
        assert place.items() <= rule["labels"].items()
        for matchers in re.findall(r"{(.*?)}", rule["expr"]):
            assert place.items() <= dict(re.findall(r'(\w+)="(.*?)"', matchers)).items()


def test_every_name_is_one_that_the_operator_exports(rules: dict[str, Any], dashboard: dict[str, Any]) -> None:
    texts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    texts += queries(dashboard).values()
    for variable in dashboard["templating"]["list"][1:]:
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert asked and asked[2] in TARGET
        texts.append(asked[1].replace("$job", JOB))
    for text in texts:
        assert unknown(text) == set(), text
    assert unknown('sum(rate(camel_ray_pipeline{phase="x"}[5m])) by (phase)') == {"camel_ray_pipeline"}
    assert unknown("sum(rate(workqueue_adds[5m])) by (name)") == {"workqueue_adds"}
    assert unknown('max(camel_ray_pipelines{state="x"}) by (phase)') == {"state"}
    assert unknown("max(camel_ray_pipelines) by (le)") == {"le"}
    assert unknown('camel_ray_attempts_total{outcome=~"Error|Oops"}') == {"Oops"}


def unknown(text: str) -> set[str]:
    """Names of metrics and labels in an expression, and values of labels it asks for, that the operator has not."""
    matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"(.*?)"', text)
    bare = re.sub(r"\[\w+\]", "", re.sub(r"\{.*?\}", "", re.sub(r'".*?"', "", text)))
    grouping = r"\b(?:by|on|without|ignoring)\s*\((.*?)\)"
    grouped = {label.strip() for labels in re.findall(grouping, bare) for label in labels.split(",")}
    words = set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", re.sub(grouping, "", bare)))
    names = words - {"and", "or", "unless"}
    assert names, text
    metrics = [exported()[name] for name in names if name in exported()]
    wrong = names - set(exported())
    for label in (grouped | {label for label, _, _ in matchers}) - TARGET:
        wrong |= {label} if metrics and not any(label in labels for labels in metrics) else set()
    for label, _, values in matchers:
        there = set().union(*(labels.get(label, set()) for labels in metrics))
        wrong |= set(values.split("|")) - there if there else set()
    return wrong


SILENT = "0+30x15 0+30x15 0+30x15"
"""A watch that stays silent: liveness restarts the pod a minute after 400 s, and it begins anew."""
NONE_YET = "NaN " * 400
END = 3 * 3600
"""When a situation ends that sets off nothing; all have samples until then."""

# Alert -> situation -> series and the minute from which it fires; None: it does not.
ALERTS: dict[str, dict[str, tuple[list[Series], float | None]]] = {
    "CamelRayOperatorDown": {
        "nothing is there to be read": ([up("1x400", namespace=OTHER)], 5),
        "no replica answers": ([up("1x9 0x400"), up("0x400", FOLLOWER)], 10),
        "the last one is gone with its pod": ([up("1x9 stale")], 10),
        "one of two answers": ([up("0x400"), up("1x400", FOLLOWER)], None),
        "none for less than five minutes": ([up("1x9 0x8 1x400")], None),
    },
    "CamelRayOperatorLeaderless": {
        "a new installation in which none leads": ([up("1x400"), up("1x400", FOLLOWER)], 5),
        "the leader ends and nobody follows": ([up("1x400"), up("1x400", FOLLOWER), leads("1x9 stale")], 10),
        "the leader says that it leads no more": ([up("1x400"), leads("1x9 0x400")], 10),
        "the one of another release leads": ([up("1x400"), leads("1x400", namespace=OTHER)], 5),
        "one of two leads": ([up("1x400"), up("1x400", FOLLOWER), leads("1x400", FOLLOWER)], None),
        "another leads after four minutes": (
            [up("1x400"), up("1x400", FOLLOWER), leads("1x9 stale"), leads("_x18 1x400", FOLLOWER)],
            None,
        ),
        "none answers, which is another alert": ([up("0x400"), up("0x400", FOLLOWER)], None),
    },
    "CamelRayOperatorWatchSilent": {
        "restarts do not help": ([age(SILENT), age("0+30x1 0x400", FOLLOWER)], 11),
        "only that of the follower is silent": ([age("20x400"), age(SILENT, FOLLOWER)], 11),
        "just too long": ([age("350x3 351 0x400")], 7),
        "as long as a watch may be": ([age("350x400"), age("350x400", FOLLOWER)], None),
    },
    "CamelRayReconcileErrors": {
        "seven a minute": ([errors("0+3.5x400"), errors("0x400", FOLLOWER)], 24),
        "the lead changes, the errors stay": ([errors("0+4x19 stale"), errors("0x19 0+4x400", FOLLOWER)], 23),
        "one in ten seconds": ([errors("0+3x400"), errors("0x400", FOLLOWER)], None),
        "for a few minutes only": ([errors("0x4 0+30x8 240x400")], None),
    },
    "CamelRayAttemptsFail": {
        "five of nine": ([attempts("Error", "0+1x5 5x400"), attempts("Succeeded", "0x4 0+1x4 4x400")], 2.5),
        "five of all kinds": (
            [
                attempts("Error", "0x9 2x400"),
                attempts("Infrastructure", "0x9 1x400", kind="ppo"),
                attempts("OutOfMemory", "0x9 2x400", kind="ppo"),
                attempts("Preemption", "0x9 4x400", kind="ppo"),
            ],
            5,
        ),
        "before and after the lead changed": (
            [attempts("Error", "0x9 2x9 stale"), attempts("Error", "0x29 3x400", FOLLOWER)],
            15,
        ),
        "after a good hour": ([attempts("Succeeded", "0+1x119 119x400"), attempts("Error", "0x239 5x400")], 120),
        "while all goes well elsewhere": (
            [attempts("Error", "0x9 5x400"), attempts("Succeeded", "0+9x400", namespace=OTHER)],
            5,
        ),
        "five of ten": ([attempts("Error", "0x9 5x400"), attempts("Succeeded", "0x9 5x400")], None),
        "four of four": ([attempts("Error", "0x9 4x400")], None),
        "four of four, long after others": ([attempts("Error", "70x200 74x400")], None),
        "stopped on request": ([attempts("Stopped", "0+1x400")], None),
        "their users' mistakes": ([attempts("UserError", "0+1x400")], None),
        "preempted": ([attempts("Preemption", "0+1x400")], None),
        "while all fails elsewhere": (
            [attempts("Succeeded", "0+1x400"), attempts("Error", "0+9x400", namespace=OTHER)],
            None,
        ),
        "three and then three two hours later": ([attempts("Error", "0x9 3x239 6x400")], None),
    },
    "CamelRayProgressCertificateExpires": {
        "less than three days are left": ([certificate(f"{3 * DAY + 3600}-30x400")], 120.5),
        "of one replica, the other has none yet": ([certificate(NONE_YET), certificate(f"{DAY}x400", FOLLOWER)], 60),
        "of one replica": ([certificate(f"{9 * DAY}x400"), certificate(f"{DAY}x400", FOLLOWER)], 60),
        "it has ended": ([certificate("-30-30x400")], 60),
        "three days are left": ([certificate(f"{3 * DAY}x400"), certificate(f"{9 * DAY}x400", FOLLOWER)], None),
        "it is renewed within the hour": ([certificate(f"{DAY}x118 {90 * DAY}x400")], None),
        "no replica has one yet": ([certificate(NONE_YET), certificate(NONE_YET, FOLLOWER)], None),
    },
}
SITUATIONS = [(name, situation) for name, situations in ALERTS.items() for situation in situations]


def firing(rule: Mapping[str, Any], **labels: str) -> dict[str, Any]:
    """An alert, in promtool's words. Of several with the same name, its summary tells which it is."""
    text = dict(rule["annotations"])
    assert set(re.findall(r"{{ \$labels\.(\w+) }}", text["summary"])) == set(labels)
    for key, value in labels.items():
        text["summary"] = text["summary"].replace(f"{{{{ $labels.{key} }}}}", value)
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": text}


def test_every_alert_has_been_seen_to_fire_and_to_keep_silent(rules: dict[str, Any]) -> None:
    assert set(ALERTS) == {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    for situations in ALERTS.values():
        assert {minute is None for _, minute in situations.values()} == {True, False}


@pytest.mark.parametrize(("name", "situation"), SITUATIONS, ids=lambda text: text.replace(" ", "-"))
def test_an_alert_fires_when_it_should_and_not_before(
    rules: dict[str, Any], tmp_path: Path, name: str, situation: str
) -> None:
    given, minute = ALERTS[name][situation]
    labels = {"kind": "pods"} if name == "CamelRayOperatorWatchSilent" else {}
    seconds = END if minute is None else int(60 * minute)
    fired = f'count_over_time(ALERTS{{alertname="{name}", alertstate="firing"}}[{END}s])'
    before = {"expr": fired, "eval_time": f"{seconds - 30}s", "exp_samples": []}
    fires = [] if minute is None else [firing(alert(rules, name), **labels)]
    then = {"alertname": name, "eval_time": f"{seconds}s", "exp_alerts": fires}
    evaluate(tmp_path, given, rules=[rules], promql_expr_test=[before], alert_rule_test=[then])


@pytest.mark.parametrize("name", [name for name in ALERTS if name != "CamelRayOperatorDown"])
def test_the_troubles_of_another_release_set_off_nothing(rules: dict[str, Any], tmp_path: Path, name: str) -> None:
    for given, minute in ALERTS[name].values():
        if minute is not None:
            moved = [one.moved(OTHER) for one in given if one.labels["namespace"] == NAMESPACE]
            state = {"alertname": name, "eval_time": f"{int(60 * minute)}s", "exp_alerts": []}
            evaluate(tmp_path, moved, rules=[rules], alert_rule_test=[state])


def test_alerts_of_two_releases_are_two_alerts(
    helm3: Helm, everything: dict[str, object], rules: dict[str, Any], tmp_path: Path
) -> None:
    rendered = objects(helm3.template(everything, f"--namespace={OTHER}"))
    others = rendered[("PrometheusRule", OTHER, JOB)]["spec"]
    fires = [firing(alert(each, "CamelRayOperatorDown")) for each in (rules, others)]
    state = {"alertname": "CamelRayOperatorDown", "eval_time": "5m", "exp_alerts": fires}
    evaluate(tmp_path, [], rules=[rules, others], alert_rule_test=[state])


def histogram(name: str, low: str, high: str, **labels: str) -> list[Series]:
    """One of the leader with an observation each half minute, all between two neighbouring bounds."""
    bounds = sorted(exported()[name]["le"], key=float)
    assert bounds.index(high) == bounds.index(low) + 1
    counts = {le: "0+1x240" if float(le) >= float(high) else "0x240" for le in bounds}
    return [series(name, values, le=le, **labels) for le, values in counts.items()]


def both(name: str, leader: str, follower: str, /, **labels: str) -> list[Series]:
    return [series(name, leader, LEADER, **labels), series(name, follower, FOLLOWER, **labels)]


def two_hours() -> list[Series]:
    """What a leader says, and a follower: it sees the same, takes reports, and queues what it never works on."""
    requests = {"code": "200", "host": "kubernetes:443"}
    seconds = "controller_runtime_reconcile_time_seconds_bucket"
    return [
        leads("1x240"),
        *both("camel_ray_build_info", "1x240", "1x240", version="0.1.0"),
        *both("camel_ray_pipelines", "3x240", "3x240", phase="Running"),
        *both("camel_ray_pipelines", "1x240", "1x240", phase="Failed"),
        *(attempts("Succeeded", "0+1x240", kind=kind) for kind in ("sft", "ppo")),
        attempts("Error", "2x179 5x60"),
        *histogram("camel_ray_start_seconds_bucket", "10.0", "30.0", kind="sft"),
        *histogram("camel_ray_queue_wait_seconds_bucket", "60.0", "120.0", kind="ppo"),
        *histogram("camel_ray_attempt_duration_seconds_bucket", "900.0", "3600.0", kind="sft", outcome="Error"),
        *both("controller_runtime_reconcile_total", "0+15x240", "0x240", controller=CONTROLLER, result="success"),
        *both("controller_runtime_reconcile_total", "0+3x240", "0x240", controller=CONTROLLER, result="error"),
        *histogram(seconds, "0.01", "0.025", controller=CONTROLLER),
        *both("workqueue_depth", "2x240", "40+1x240", name=CONTROLLER),
        *both("workqueue_longest_running_processor_seconds", "7x240", "0x240", name=CONTROLLER),
        *both("camel_ray_reflector_age_seconds", "20x240", "65x240", kind="pods"),
        *both("rest_client_requests_total", "0+30x240", "0+30x240", method="watch", **requests),
        *both("rest_client_requests_total", "0+60x240", "0x240", method="get", **requests),
        *both("camel_ray_progress_reports_total", "0+15x240", "0+15x240", code="200"),
        *both("process_resident_memory_bytes", "2e8x240", "1e8x240"),
        *both("process_cpu_seconds_total", "0+3x240", "0+1.5x240"),
        *both("camel_ray_progress_certificate_expiry_seconds", f"{30 * DAY}x240", f"{29 * DAY}x240"),
    ]


BOTH = (NAMESPACE, OTHER)
PLACE = f'namespace="{NAMESPACE}", job="{JOB}"'
POD, POD_2 = (f'{PLACE}, pod="{pod}", instance="{pod}.{NAMESPACE}:8080"' for pod in (LEADER, FOLLOWER))
# Title and legend -> labels and value of each line after these hours.
PANELS: dict[tuple[str, str], dict[str, float]] = {
    ("Pipelines by phase", "{{phase}}"): {'{phase="Running"}': 3, '{phase="Failed"}': 1},
    ("Attempts that ended, per hour", "{{outcome}}"): {'{outcome="Succeeded"}': 240, '{outcome="Error"}': 3},
    ("Leading replicas", "{{namespace}} {{job}}"): {f"{{{PLACE}}}": 1},
    ("From decision to running process", "{{kind}} p50"): {'{kind="sft"}': 20},
    ("From decision to running process", "{{kind}} p95"): {'{kind="sft"}': 29},
    ("Wait in Kueue's queues", "{{kind}} p50"): {'{kind="ppo"}': 90},
    ("Wait in Kueue's queues", "{{kind}} p95"): {'{kind="ppo"}': 117},
    ("Duration of attempts (p50)", "{{kind}} {{outcome}}"): {'{kind="sft", outcome="Error"}': 2250},
    ("Reconciles per second", "{{result}}"): {'{result="success"}': 0.5, '{result="error"}': 0.1},
    ("Time of a reconcile", "p50"): {"{}": 0.0175},
    ("Time of a reconcile", "p99"): {"{}": 0.02485},
    ("Pipelines that wait to be looked at", "waiting"): {"{}": 2},
    ("Pipelines that wait to be looked at", "longest, s"): {"{}": 7},
    ("Silence of watches", "{{kind}}"): {'{kind="pods"}': 65},
    ("Requests to the API server per second", "{{method}} {{code}}"): {
        '{code="200", method="watch"}': 2,
        '{code="200", method="get"}': 2,
    },
    ("Progress reports per second", "{{code}}"): {'{code="200"}': 1},
    ("Memory", "{{pod}}"): {
        f"process_resident_memory_bytes{{{POD}}}": 2e8,
        f"process_resident_memory_bytes{{{POD_2}}}": 1e8,
    },
    ("Processor", "{{pod}}"): {f"{{{POD}}}": 0.1, f"{{{POD_2}}}": 0.05},
    ("Certificate of the progress server ends in", "left"): {"{}": 29 * DAY},
}


def show(directory: Path, texts: Mapping[Any, str], given: Sequence[Series], lines: Mapping[Any, Any]) -> None:
    """Asserts that the panels have these lines after two hours."""
    tests = []
    for panel, expected in lines.items():
        samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
        tests.append({"expr": texts[panel], "eval_time": "2h", "exp_samples": samples})
    evaluate(directory, given, promql_expr_test=tests)


def test_every_panel_shows_the_number_that_its_title_promises(dashboard: dict[str, Any], tmp_path: Path) -> None:
    texts = queries(dashboard)
    assert set(PANELS) == set(texts)
    elsewhere = [one.moved(OTHER) for one in two_hours()]
    show(tmp_path, texts, [*two_hours(), *elsewhere], PANELS)


def test_a_legend_tells_the_lines_of_a_panel_apart() -> None:
    for (_, legend), lines in PANELS.items():
        shown = set()
        for line in lines:
            labels = dict(re.findall(r'(\w+)="(.*?)"', line))
            shown.add(" ".join(labels[name] for name in re.findall(r"{{(\w+)}}", legend)))
        assert len(shown) == len(lines)


def test_with_two_releases_the_dashboard_adds_what_is_two_things(dashboard: dict[str, Any], tmp_path: Path) -> None:
    elsewhere = [one.moved(OTHER) for one in two_hours()]
    lines = {
        ("Pipelines by phase", "{{phase}}"): {'{phase="Running"}': 6, '{phase="Failed"}': 2},
        ("Leading replicas", "{{namespace}} {{job}}"): {f"{{{PLACE.replace(NAMESPACE, name)}}}": 1 for name in BOTH},
        ("Attempts that ended, per hour", "{{outcome}}"): {'{outcome="Succeeded"}': 480, '{outcome="Error"}': 6},
        ("Reconciles per second", "{{result}}"): {'{result="success"}': 1, '{result="error"}': 0.2},
        ("Pipelines that wait to be looked at", "waiting"): {"{}": 4},
        ("Certificate of the progress server ends in", "left"): {"{}": 29 * DAY},
    }
    show(tmp_path, queries(dashboard, "|".join(BOTH)), [*two_hours(), *elsewhere], lines)


def test_a_release_that_nobody_leads_shows_as_zero_and_not_as_a_gap(dashboard: dict[str, Any], tmp_path: Path) -> None:
    headless = [one for one in two_hours() if one.name != "leader_election_master_status"]
    lines = {("Leading replicas", "{{namespace}} {{job}}"): {f"{{{PLACE}}}": 0}}
    show(tmp_path, queries(dashboard), headless, lines)
