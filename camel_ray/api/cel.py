"""The rules of `rules.py` in CEL, for the apiserver: what it can judge is refused by `kubectl apply` too.

Each rule takes its sentence from `sentences.py`. CEL sees values that have one type in the schema, so no rule looks
into a field that takes text or a mapping (`data`, `model`, `workers`, `placement`); what is said about those is listed
in `NOT_MIRRORED`, and the operator says it in the status of the pipeline instead.

Rules run after defaulting. A stage may have 50 needs and a pipeline 50 stages, and a call may cost a million units, so
lists of names are made once, bound by a list with one entry: `[names].all(n, ...)`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from camel_ray.api import rules
from camel_ray.api import sentences as say
from camel_ray.api.fields import expected
from camel_ray.api.graph import PRODUCES
from camel_ray.api.pipeline import Metadata
from camel_ray.api.stages.ppo import SamplingSpec

STAGE_STARTED = (
    "stage '{name}' has started; its fields cannot be changed: delete the pipeline and apply it again (storage is "
    "kept), or `camel-ray retry NAME --from {name}`"
)
FIELD_STARTED = (
    "{name} cannot be changed once a stage has started: delete the pipeline and apply it again, under another name if "
    "what the stages made so far shall stay"
)
PIPELINE_NAME = (
    f"metadata.name should be {expected(str, Metadata.model_fields['name'].metadata)}, not '{{name}}'; "
    "see `camel-ray explain metadata.name`"
)


@dataclass(frozen=True)
class CelRule:
    """A rule of the CRD: where it stands, when it holds, and what is said if it does not."""

    places: tuple[str, ...]
    """Paths of the schema, such as `spec.stages[].ppo`; the root is empty."""
    holds: str
    """CEL expression that is true if all is well; `self` is the value at the place."""
    sentence: str
    """Template of the message."""
    values: Mapping[str, str] = field(default_factory=dict)
    """CEL expressions of text for the names in the template."""
    at: str = ""
    """The field that the message is about, relative to the place."""

    def manifest(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.holds}
        if self.values:
            entry["messageExpression"] = _filled(self.sentence, self.values)
        else:
            entry["message"] = self.sentence
        return entry | ({"fieldPath": self.at} if self.at else {})


def _filled(template: str, values: Mapping[str, str]) -> str:
    """An expression for the template; `format`, because the estimate of its cost asks for no length of the parts."""
    text, arguments = "", []
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal.replace("%", "%%") + ("%s" if name else "")
        arguments += [values[name]] if name else []
    return f"{_text(text)}.format([{', '.join(arguments)}])"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _texts(values: Iterable[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"


def _optional(path: str) -> str:
    """A list with the value at a path such as `s.ppo.reward.model`, empty where a part of the path is absent."""
    keys = path.split(".")
    present = [f"has({'.'.join(keys[: i + 1])})" for i in range(1, len(keys))]
    return f"({' && '.join(present)} ? [{path}] : [])"


def _joined(paths: Sequence[str]) -> str:
    return " + ".join(_optional(path) for path in paths)


def _unique(place: str, key: str, sentence: str) -> CelRule:
    once = f"self.exists_one(b, b.{key} == a.{key})"
    first = f"self.filter(a, !{once})[0].{key}"
    number = f"[self.map(a, a.{key})].map(names, string(1 + names.indexOf({first})))[0]"
    return CelRule((place,), f"self.all(a, {once})", sentence, {"name": first, "number": number})


def _named(bad: str, candidates: str) -> tuple[str, str]:
    """A rule on the stages that no candidate of a stage is bad, and the first one that is.

    `bad` and `candidates` are written with `names` (of all stages, in order), `s` (the stage) and `n` (the candidate).
    """
    names = "[self.map(s, s.name)]"
    holds = f"{names}.all(names, self.all(s, ({candidates}).all(n, !({bad}))))"
    found = f"self.map(s, ({candidates}).filter(n, {bad})).filter(l, size(l) > 0)[0][0]"
    return holds, f"{names}.map(names, {found})[0]"


def _of_stages(bad: str, candidates: str, sentence: str) -> CelRule:
    holds, first = _named(bad, candidates)
    return CelRule(("spec.stages",), holds, sentence, {"name": first})


def _wrong_artifact(paths: Sequence[str], wanted: str) -> CelRule:
    """Fields of one type that name an earlier stage name one that makes what they take."""
    fits = " || ".join(f"has(t.{kind})" for kind, made in PRODUCES.items() if made == wanted)
    bad = f"self.exists(t, t.name == n && !({fits}))"
    holds, first = _named(bad, _joined(paths))
    made = "'nothing'"
    for kind, artifact in PRODUCES.items():
        made = f"has(t.{kind}) ? {_text(artifact)} : {made}"
    return CelRule(
        ("spec.stages",),
        holds,
        say.WRONG_ARTIFACT,
        {"name": first, "made": f"self.filter(t, t.name == {first}).map(t, {made})[0]", "wanted": _text(wanted)},
    )


def _offload(sentence: str, word: str, zero: str) -> CelRule:
    """`offload` and `zero` of ppo and of its roles that train, which inherit what they do not set."""
    checks = []
    for role in ("", "actor", "critic"):
        own = f"self.roles.{role}" if role else "self"
        there = f"has(self.roles) && has({own}) && has" if role else "true || has"
        offload = f"({there}({own}.offload) ? {own}.offload : self.offload)"
        stage = f"({there}({own}.zero) ? {own}.zero : self.zero)"
        checks.append(
            f"({offload} != {word!r} || {stage} {zero})" if role else f"(self.offload != {word!r} || self.zero {zero})"
        )
    return CelRule(("spec.stages[].ppo",), " && ".join(checks), sentence)


_TRAINING = tuple(f"spec.stages[].{kind}" for kind in rules.TRAINING)
_MEMBERS = "[" + ", ".join(f"has(self.{kind})" for kind in PRODUCES) + "]"
_MEMBER_NAMES = " + ".join(f"(has(self.{kind}) ? {_text(f' and {kind}')} : '')" for kind in PRODUCES)
_TOKENIZERS = [f"s.{kind}.tokenizer" for kind in rules.TRAINING]
_REWARDS = ["s.ppo.reward.model", "s.evaluate.rewardModel"]
_NEEDS = "(has(s.needs) ? s.needs : [])"
_STAGES_BEFORE = "names.indexOf(n) >= 0 && names.indexOf(n) < names.indexOf(s.name)"
_GROUPS = "(has(self.cluster) && has(self.cluster.groups) ? self.cluster.groups.map(g, g.name) : [])"
_USED_GROUPS = _joined(
    ["s.group", *(f"s.ppo.roles.{r}.group" for r in ("actor", "critic", "reference", "reward", "rollout"))]
)
_UNKNOWN_GROUPS = f"self.stages.map(s, ({_USED_GROUPS}).filter(n, !(n in names)))"
_RESERVED = _texts(rules.RESERVED_PATHS)
_HIDES = "((self.mountPath + '/').startsWith(p + '/') || p.startsWith(self.mountPath + '/'))"
_TAKEN_KEY = " || ".join(
    [f"k == {_text(rules.MANAGED_BY)}", *(f"k.startsWith({_text(p)})" for p in rules.RESERVED_KEYS)]
)
_BAD_KEY = f"!k.matches({_text(f'^{rules.KEY_PATTERN}$')})"
_POD_METADATA = ("spec.cluster.labels", "spec.cluster.annotations")
_DEFAULT_LONGEST = SamplingSpec.model_fields["max_response_length"].default
_LONGEST = f"(has(self.sampling) ? self.sampling.maxResponseLength : {_DEFAULT_LONGEST})"
_STARTED = "has(oldSelf.status) && has(oldSelf.status.startedStages)"
_INDICES = "[" + ", ".join(str(i) for i in range(50)) + "]"
_CHANGED = (
    "i < size(oldSelf.spec.stages) && oldSelf.spec.stages[i].name in oldSelf.status.startedStages"
    " && !(i < size(self.spec.stages) && self.spec.stages[i] == oldSelf.spec.stages[i])"
)
_STATUS_WRITE = (
    "has(self.status) && has(oldSelf.status) && ("
    + " || ".join(
        f"has(self.status.{name}) && (!has(oldSelf.status.{name}) || self.status.{name} != oldSelf.status.{name})"
        for name in ("phase", "message", "progress", "metrics")
    )
    + ")"
)
"""True for most writes of the status. No request changes spec and status at once, so the stages are the same then; to
compare nine of them costs the apiserver about 8 ms."""


def _frozen(name: str) -> CelRule:
    """A field of `spec` that stays what it is once anything has started. `dyn`: `model` has no type that CEL knows."""
    old, new = "dyn(oldSelf.spec)", "dyn(self.spec)"
    same = f"has({old}.{name}) == has({new}.{name}) && (!has({new}.{name}) || {new}.{name} == {old}.{name})"
    holds = f"!({_STARTED}) || size(oldSelf.status.startedStages) == 0 || ({same})"
    return CelRule(("",), holds, FIELD_STARTED.format(name=name), at=f".spec.{name}")


CEL_RULES: tuple[CelRule, ...] = (
    CelRule(
        ("",),
        f"self.metadata.name.matches({_text(str(Metadata.model_fields['name'].metadata[0].pattern))})",
        PIPELINE_NAME,
        {"name": "self.metadata.name"},
    ),
    CelRule(
        ("",),
        f"!({_STARTED}) || ({_STATUS_WRITE}) || {_INDICES}.all(i, !({_CHANGED}))",
        STAGE_STARTED,
        {"name": f"oldSelf.spec.stages[{_INDICES}.filter(i, {_CHANGED})[0]].name"},
        ".spec.stages",
    ),
    _frozen("storage"),
    _frozen("seed"),
    _frozen("model"),
    # at `spec`, because the apiserver repeats the text that a rule about a text is broken by
    CelRule(("spec",), f"!self.storage.matches({_text(rules.CREDENTIALS_PATTERN)})", say.CREDENTIALS, at=".storage"),
    # the cluster
    _unique("spec.cluster.groups", "name", say.NAME_TAKEN),
    CelRule(
        ("spec.cluster.groups[]",),
        "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        say.GROUP_RANGE,
        {"low": "string(self.minReplicas)", "high": "string(self.maxReplicas)"},
        ".minReplicas",
    ),
    CelRule(
        ("spec.cluster.groups[]",),
        "!has(self.replicas) || (!has(self.minReplicas) && !has(self.maxReplicas))",
        say.GROUP_SIZE,
        at=".replicas",
    ),
    _unique("spec.cluster.env", "name", say.NAME_TAKEN),
    CelRule(("spec.cluster.env[]",), "has(self.value) != has(self.secret)", say.ENV_SOURCE),
    CelRule(
        ("spec.cluster.env[]",),
        f"self.name == {_text(rules.CACHE_VARIABLE)} || "
        + " && ".join(f"!self.name.startsWith({_text(start)})" for start in rules.OPERATOR_VARIABLES),
        say.ENV_TAKEN,
        {"name": "self.name"},
        ".name",
    ),
    CelRule(
        ("spec.cluster.env[]",),
        f"!has(self.value) || self.value == '' || !self.name.matches({_text(rules.SECRET_VARIABLE_PATTERN)})",
        say.ENV_SECRET,
        {"name": "self.name"},
        ".value",
    ),
    _unique("spec.cluster.volumes", "mountPath", say.VOLUME_TAKEN),
    CelRule(
        ("spec.cluster.volumes[]",),
        "[" + ", ".join(f"has(self.{source})" for source in rules.VOLUME_SOURCES) + "].exists_one(x, x)",
        say.VOLUME_SOURCE,
    ),
    CelRule(
        ("spec.cluster.volumes[]",),
        f"{_RESERVED}.all(p, !{_HIDES})",
        say.VOLUME_RESERVED,
        {"path": "self.mountPath", "reserved": f"{_RESERVED}.filter(p, {_HIDES})[0]"},
        ".mountPath",
    ),
    CelRule(_POD_METADATA, f"self.all(k, !({_TAKEN_KEY}))", say.POD_KEY, {"key": f"self.filter(k, {_TAKEN_KEY})[0]"}),
    CelRule(_POD_METADATA, f"self.all(k, !{_BAD_KEY})", say.POD_KEY_FORM, {"key": f"self.filter(k, {_BAD_KEY})[0]"}),
    # the stages
    _unique("spec.stages", "name", say.NAME_TAKEN),
    CelRule(("spec.stages[]",), f"{_MEMBERS}.exists(x, x)", say.MEMBER_NONE.format(kinds=", ".join(PRODUCES))),
    CelRule(
        ("spec.stages[]",),
        f"{_MEMBERS}.filter(x, x).size() < 2",
        say.MEMBER_SEVERAL,
        {"kinds": f"({_MEMBER_NAMES}).substring({len(' and ')})"},
    ),
    _of_stages("n == s.name", f"{_NEEDS} + {_joined(_TOKENIZERS + _REWARDS)}", say.NEEDS_ITSELF),
    _of_stages(
        "names.indexOf(n) > names.indexOf(s.name)", f"{_NEEDS} + {_joined(_TOKENIZERS + _REWARDS)}", say.NEEDS_LATER
    ),
    _of_stages("!(n in names)", _NEEDS, say.NEEDS_UNKNOWN),
    _wrong_artifact(_TOKENIZERS, "tokenizer"),
    _wrong_artifact(_REWARDS, "reward-model"),
    CelRule(
        ("spec",),
        f"[{_GROUPS}].all(names, self.stages.all(s, ({_USED_GROUPS}).all(n, n in names)))",
        say.NO_GROUP,
        {"name": f"[{_GROUPS}].map(names, {_UNKNOWN_GROUPS}.filter(l, size(l) > 0)[0][0])[0]"},
    ),
    CelRule(
        _TRAINING, "!has(self.earlyStopping) || has(self.evaluateEverySteps)", say.EARLY_STOPPING, at=".earlyStopping"
    ),
    CelRule(_TRAINING, "self.offload != 'all' || self.zero == 3", say.OFFLOAD_ALL, at=".offload"),
    CelRule(_TRAINING, "self.offload != 'optimizer' || self.zero != 0", say.OFFLOAD_OPTIMIZER, at=".offload"),
    CelRule(("spec.stages[].tokenizer",), "has(self.source) || has(dyn(self).data)", say.TOKENIZER_SOURCE),
    # ppo
    CelRule(
        ("spec.stages[].ppo",),
        "has(self.environment) || (has(self.reward) && (has(self.reward.model) || has(self.reward.__function__)"
        " || has(self.reward.answer) || has(self.reward.http)))",
        say.REWARD_NONE,
    ),
    CelRule(
        ("spec.stages[].ppo",),
        "!(self.advantage in ['rloo', 'group']) || self.samplesPerPrompt > 1",
        say.SAMPLES,
        {"advantage": "self.advantage"},
        ".advantage",
    ),
    CelRule(
        ("spec.stages[].ppo",),
        "self.advantage in ['rloo', 'group'] || self.skipUniformGroups == 0",
        say.UNIFORM_GROUPS,
        at=".skipUniformGroups",
    ),
    CelRule(
        ("spec.stages[].ppo.kl",),
        "self.place != 'loss' || self.estimator != 'k1' || self.controller == 'none'",
        say.KL_LOSS,
        at=".estimator",
    ),
    CelRule(
        ("spec.stages[].ppo",),
        f"!has(self.reward) || self.reward.overlongBuffer <= {_LONGEST}",
        say.OVERLONG,
        {"buffer": "string(self.reward.overlongBuffer)", "longest": f"string({_LONGEST})"},
        ".reward.overlongBuffer",
    ),
    CelRule(
        ("spec.stages[].ppo.reward.http",),
        "self.url.startsWith('http://') || self.url.startsWith('https://')",
        say.HTTP_URL,
        {"url": "self.url"},
        ".url",
    ),
    CelRule(
        ("spec.stages[].ppo",),
        "!has(self.rollout) || self.rollout.engine != 'vllm' || dyn(self).placement != 'colocated'",
        say.ROLLOUT_ALONE.format(name="engine", value="vllm"),
        at=".rollout.engine",
    ),
    CelRule(
        ("spec.stages[].ppo",),
        "!has(self.rollout) || self.rollout.staleness != 1 || dyn(self).placement != 'colocated'",
        say.ROLLOUT_ALONE.format(name="staleness", value=1),
        at=".rollout.staleness",
    ),
    _offload(say.OFFLOAD_ALL, "all", "== 3"),
    _offload(say.OFFLOAD_OPTIMIZER, "optimizer", "!= 0"),
)
"""All rules of the CRD, in the order in which they are reported."""

_UNTYPED = "it looks into a field that takes several types, which CEL cannot read"
NOT_MIRRORED: Mapping[str, str] = {
    "MEMBER_EMPTY": "the apiserver drops null before the rules run, so the stage has no member: MEMBER_NONE",
    "NO_MODEL": f"it follows what earlier stages make through `model` and `data`; {_UNTYPED}",
    "MODEL_EMPTY": _UNTYPED,
    "MODEL_TYPE": _UNTYPED,
    "NO_TOKENIZER": _UNTYPED,
    "MODEL_UNTRAINED": _UNTYPED,
    "WORKERS_RANGE": _UNTYPED,
    "WORKERS_NONE": _UNTYPED,
    "BATCH": f"it depends on `workers`; {_UNTYPED}",
    "NOTHING_TO_DO": f"the stage may name others in `data` or `model`; {_UNTYPED}",
    "IMPORTANCE": "the ranges of low (at most 1) and high (at least 1) say it already",
    "ROLE_TWICE": _UNTYPED,
    "ROLE_NOWHERE": _UNTYPED,
}
"""Sentences of `rules.py` that no rule of the CRD says, with the reason."""
