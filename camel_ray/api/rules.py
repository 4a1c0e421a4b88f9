"""The rules of a pipeline that span several fields, each stated once.

They run on the camelCase mapping, not on the models, so that a file with a wrong type in one place still gets all the
other mistakes reported. A rule is a function that yields violations; values of the wrong type are none of its
business (the schema reports those).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from camel_ray.api import hf_arguments
from camel_ray.api import sentences as say
from camel_ray.api.graph import PRODUCES, direct_needs, members, newest, references

Mapped = Mapping[str, Any]
TRAINING = ("pretrain", "sft", "reward", "dpo")
VOLUME_SOURCES = ("claim", "secret", "configMap", "memory")
OPERATOR_VARIABLES = ("CAMEL_RAY_", "KUBEFLOW_TRAINER_")
"""Beginnings of the variables by which the operator talks to a stage."""
CACHE_VARIABLE = "CAMEL_RAY_CACHE"
"""The one of them that is the user's: where the mirror of remote storage lies."""
SCRATCH_DIRECTORY = "/var/cache/camel-ray"
"""Where the operator mounts a claim for that mirror."""
RESERVED_PATHS = (
    "/etc/camel-ray",
    SCRATCH_DIRECTORY,
    "/tmp",
    "/dev",
    "/proc",
    "/sys",
    "/var/run/secrets",
    "/run/secrets",
)
"""Where the operator, KubeRay, Kubernetes and container runtimes mount their own."""
MANAGED_BY = "app.kubernetes.io/managed-by"
RESERVED_KEYS = ("camel-ray.dev/", "ray.io/", "kueue.x-k8s.io/", "batch.kubernetes.io/")
"""Labels and annotations by which the operator, KubeRay, Kueue and the Job controller find their pods."""
CREDENTIALS_PATTERN = (
    r"(^|::)((s3a?|gs|gcs)://([^/?#]*@|[^/?#:]+:[A-Za-z0-9/+=]{20,}@)|[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#@]*@)"
)
"""Addresses with a password, or with the key of an object store; a user alone (`sftp://me@host`, `abfs://box@account`)
is none. One syntax for Python and CEL."""
SECRET_VARIABLE_PATTERN = (
    r"(^|_)(PASSWORD|PASSWD|SECRET|(SECRET|SECRET_ACCESS|API|ACCOUNT|PRIVATE|STORAGE)_KEY|APIKEY|CONNECTION_STRING|"
    r"(HF|HUB|SESSION|ACCESS|AUTH|API|BEARER|REFRESH|GITHUB|GITLAB)_TOKEN)$"
)
"""Environment variables whose values are secrets, by the names that clouds, hubs and trackers gave them. `PAD_TOKEN`
and the like are none. One syntax for Python and CEL."""
KEY_PATTERN = r"([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold: the path of the field (keys and list indices) and the sentence."""

    path: tuple[str | int, ...]
    message: str
    follows: Literal["", "keys", "stages"] = ""
    """What may be the real cause, if that is wrong too: an entry of this mapping or list, or anything that decides
    which artifacts this stage finds. The loader then reports the cause only."""

    @property
    def field(self) -> str:
        """The path in the form `spec.stages[2].sft.data`."""
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path).lstrip(".")


def check_rules(document: Any) -> list[Violation]:
    """All violations of a CamelPipeline mapping, in the order of the file."""
    spec = document.get("spec") if isinstance(document, Mapping) else None
    if not isinstance(spec, Mapping):
        return []
    found = [v for rule in _PIPELINE_RULES for v in rule(spec)]
    stages = spec.get("stages")
    if isinstance(stages, list) and all(isinstance(s, Mapping) for s in stages):
        for index in range(len(stages)):
            found.extend(
                Violation(("spec", "stages", index, *v.path), v.message, v.follows)
                for rule in _STAGE_RULES
                for v in rule(spec, stages, index)
            )
    return found


def nearest(word: str, known: list[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, or the empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def holds_credentials(uri: str) -> bool:
    """Whether an address says a password or a key to everybody who reads it."""
    return re.search(CREDENTIALS_PATTERN, uri) is not None


def _credentials(spec: Mapped) -> Iterator[Violation]:
    """Wherever an address may stand; lists and mappings are looked through."""
    found: list[tuple[tuple[str | int, ...], Any]] = [(("spec",), spec)]
    while found:
        path, value = found.pop()
        if isinstance(value, str) and holds_credentials(value):
            yield Violation(path, say.CREDENTIALS)
        elif isinstance(value, Mapping):
            found += [((*path, key), item) for key, item in reversed(list(value.items()))]
        elif isinstance(value, list):
            found += [((*path, i), item) for i, item in reversed(list(enumerate(value)))]


def _unique_names(spec: Mapped) -> Iterator[Violation]:
    for where, items in (("stages", spec.get("stages")), ("groups", _groups(spec))):
        seen: dict[Any, int] = {}
        for i, item in enumerate(items if isinstance(items, list) else []):
            name = item.get("name") if isinstance(item, Mapping) else None
            if isinstance(name, str) and name in seen:
                path = ("spec", "stages", i, "name") if where == "stages" else ("spec", "cluster", "groups", i, "name")
                yield Violation(path, say.NAME_TAKEN.format(name=name, number=seen[name] + 1))
            elif isinstance(name, str):
                seen[name] = i


def _group_sizes(spec: Mapped) -> Iterator[Violation]:
    for i, group in enumerate(_groups(spec)):
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        path = ("spec", "cluster", "groups", i)
        if isinstance(low, int) and isinstance(high, int) and low > high:
            yield Violation((*path, "minReplicas"), say.GROUP_RANGE.format(low=low, high=high))
        if group.get("replicas") is not None and (low is not None or high is not None):
            yield Violation((*path, "replicas"), say.GROUP_SIZE)


def is_operators(variable: str) -> bool:
    """Whether only the operator may set an environment variable."""
    return variable.startswith(OPERATOR_VARIABLES) and variable != CACHE_VARIABLE


def _env(spec: Mapped) -> Iterator[Violation]:
    seen: dict[str, int] = {}
    for i, variable in enumerate(_cluster_list(spec, "env")):
        path, name = ("spec", "cluster", "env", i), variable.get("name")
        if (variable.get("value") is None) == (variable.get("secret") is None):
            yield Violation(path, say.ENV_SOURCE, "keys")
        if isinstance(name, str) and is_operators(name):
            yield Violation((*path, "name"), say.ENV_TAKEN.format(name=name))
        if isinstance(name, str) and re.search(SECRET_VARIABLE_PATTERN, name) and variable.get("value"):
            yield Violation((*path, "value"), say.ENV_SECRET.format(name=name))
        if isinstance(name, str) and seen.setdefault(name, i) != i:
            yield Violation((*path, "name"), say.NAME_TAKEN.format(name=name, number=seen[name] + 1))


def _volumes(spec: Mapped) -> Iterator[Violation]:
    seen: dict[str, int] = {}
    for i, volume in enumerate(_cluster_list(spec, "volumes")):
        path, mount = ("spec", "cluster", "volumes", i), volume.get("mountPath")
        if sum(volume.get(source) is not None for source in VOLUME_SOURCES) != 1:
            yield Violation(path, say.VOLUME_SOURCE, "keys")
        if not isinstance(mount, str):
            continue
        for reserved in RESERVED_PATHS:
            if f"{mount}/".startswith(f"{reserved}/") or reserved.startswith(f"{mount}/"):
                message = say.VOLUME_RESERVED.format(path=mount, reserved=reserved)
                yield Violation((*path, "mountPath"), message)
        if seen.setdefault(mount, i) != i:
            yield Violation((*path, "mountPath"), say.VOLUME_TAKEN.format(name=mount, number=seen[mount] + 1))


def _pod_metadata(spec: Mapped) -> Iterator[Violation]:
    cluster = _mapping(spec.get("cluster"))
    for where in ("labels", "annotations"):
        for key in (k for k in _mapping(cluster.get(where)) if isinstance(k, str)):
            path = ("spec", "cluster", where, key)
            if key == MANAGED_BY or key.startswith(RESERVED_KEYS):
                yield Violation(path, say.POD_KEY.format(key=key))
            elif not re.fullmatch(KEY_PATTERN, key):
                yield Violation(path, say.POD_KEY_FORM.format(key=key))


def _one_member(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    found = members(stages[i])
    empty = [kind for kind in PRODUCES if kind in stages[i]]
    if not found and empty:
        yield Violation((empty[0],), say.MEMBER_EMPTY.format(kind=empty[0]))
    elif not found:
        yield Violation((), say.MEMBER_NONE.format(kinds=", ".join(PRODUCES)), "keys")
    elif len(found) > 1:
        yield Violation((found[1],), say.MEMBER_SEVERAL.format(kinds=" and ".join(found)))


def _needs_earlier(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    needs = stages[i].get("needs")
    names = [s.get("name") for s in stages]
    for k, need in enumerate(needs if isinstance(needs, list) else []):
        yield from (Violation(("needs", k), m) for m in _earlier(need, names, i) if isinstance(need, str))


def _earlier(name: str, names: list[Any], i: int) -> Iterator[str]:
    if name == names[i]:
        yield say.NEEDS_ITSELF.format(name=name)
    elif name in names[i:]:
        yield say.NEEDS_LATER.format(name=name)
    elif name not in names[:i]:
        yield say.NEEDS_UNKNOWN.format(name=name) + nearest(name, [n for n in names[:i] if isinstance(n, str)])


def _references_fit(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    names = [s.get("name") for s in stages]
    for kind in members(stages[i])[:1]:
        for ref in references(kind, stages[i][kind]):
            path = (kind, *ref.field.split("."))
            if ref.value in names[:i]:
                target = stages[names.index(ref.value)]
                made = [PRODUCES[k] for k in members(target)]
                if made and made[0] not in ref.wants:
                    message = say.WRONG_ARTIFACT.format(name=ref.value, made=made[0], wanted=" or ".join(ref.wants))
                    yield Violation(path, message)
            elif ref.only_stages or ref.value in names[i:]:
                for sentence in _earlier(ref.value, names, i):
                    hint = (
                        " A file or URI is written as {source: ...}."
                        if ref.only_stages and "no stage" in sentence
                        else ""
                    )
                    yield Violation(path, sentence + hint)
            elif "/" not in ref.value and (hint := nearest(ref.value, [n for n in names[:i] if isinstance(n, str)])):
                hint += " What lies on the hub is written as owner/name, a directory as ./name."
                yield Violation(path, say.NEEDS_UNKNOWN.format(name=ref.value) + hint)


def _has_model_and_tokenizer(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    for kind in members(stages[i])[:1]:
        member = stages[i][kind]
        if kind not in (*TRAINING, "ppo", "evaluate") or not isinstance(member, Mapping):
            continue
        own = member.get("model")
        model = own if own is not None else newest(stages, i, "model") or spec.get("model")
        path = (kind,) if own is None else (kind, "model")
        if model is None:
            yield Violation((kind,), say.NO_MODEL, "stages")
        elif isinstance(model, Mapping) and not model.get("source"):
            if not isinstance(model.get("config"), Mapping):
                yield Violation(path, say.MODEL_EMPTY, "keys")
            elif not isinstance(model["config"].get("model_type"), str):
                yield Violation(path, say.MODEL_TYPE)
            elif member.get("tokenizer") is None and newest(stages, i, "tokenizer") is None:
                yield Violation((kind,), say.NO_TOKENIZER, "stages")
            if kind in ("ppo", "evaluate"):
                yield Violation(path, say.MODEL_UNTRAINED.format(kind=kind))


def _workers(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    workers = stages[i].get("workers", 1)
    if isinstance(workers, Mapping):
        low, high = workers.get("min"), workers.get("max")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            yield Violation(("workers", "min"), say.WORKERS_RANGE.format(low=low, high=high))
        return
    if isinstance(workers, int) and workers < 1:
        yield Violation(("workers",), say.WORKERS_NONE)
        return
    for kind in members(stages[i])[:1]:
        member = stages[i][kind]
        if kind in TRAINING and isinstance(member, Mapping) and isinstance(workers, int):
            batch, micro = member.get("batchSize", 32), member.get("microBatchSize", 8)
            if isinstance(batch, int) and isinstance(micro, int) and micro > 0 and batch % (workers * micro):
                better = max(1, batch // (workers * micro)) * workers * micro
                message = say.BATCH.format(batch=batch, workers=workers, micro=micro, better=better)
                yield Violation((kind, "batchSize"), message)


def _known_groups(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    known = [g["name"] for g in _groups(spec) if isinstance(g.get("name"), str)]
    wanted: list[tuple[tuple[str | int, ...], Any]] = [(("group",), stages[i].get("group"))]
    ppo = stages[i].get("ppo")
    roles = ppo.get("roles") if isinstance(ppo, Mapping) else None
    if isinstance(roles, Mapping):
        wanted += [(("ppo", "roles", r, "group"), v.get("group")) for r, v in roles.items() if isinstance(v, Mapping)]
    for path, group in wanted:
        if isinstance(group, str) and group not in known:
            yield Violation(path, say.NO_GROUP.format(name=group) + nearest(group, known))


def _training(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    for kind in members(stages[i])[:1]:
        member = stages[i][kind]
        if kind not in TRAINING or not isinstance(member, Mapping):
            continue
        if member.get("earlyStopping") is not None and member.get("evaluateEverySteps") is None:
            yield Violation((kind, "earlyStopping"), say.EARLY_STOPPING)
        if member.get("offload") == "all" and member.get("zero", 2) != 3:
            yield Violation((kind, "offload"), say.OFFLOAD_ALL)
        if member.get("offload") == "optimizer" and member.get("zero", 2) == 0:
            yield Violation((kind, "offload"), say.OFFLOAD_OPTIMIZER)


def _trainer_arguments(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    for kind in members(stages[i])[:1]:
        member = stages[i][kind]
        trainer = member.get("trainer") if kind in TRAINING and isinstance(member, Mapping) else None
        if isinstance(trainer, Mapping):
            for key, message in hf_arguments.check_trainer(kind, trainer):
                yield Violation((kind, "trainer", key), message)


def _tokenizer(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    member = stages[i].get("tokenizer")
    if isinstance(member, Mapping) and member.get("source") is None and not member.get("data"):
        yield Violation(("tokenizer",), say.TOKENIZER_SOURCE, "keys")


def _ppo(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    ppo = stages[i].get("ppo")
    if not isinstance(ppo, Mapping):
        return
    reward, advantage = _mapping(ppo.get("reward")), ppo.get("advantage", "gae")
    sources = ("model", "function", "answer", "http")
    if all(reward.get(source) is None for source in sources) and ppo.get("environment") is None:
        yield Violation(("ppo", "reward"), say.REWARD_NONE, "keys")
    if advantage in ("rloo", "group") and ppo.get("samplesPerPrompt", 1) == 1:
        yield Violation(("ppo", "advantage"), say.SAMPLES.format(advantage=advantage))
    if advantage not in ("rloo", "group") and ppo.get("skipUniformGroups", 0):
        yield Violation(("ppo", "skipUniformGroups"), say.UNIFORM_GROUPS)
    kl = _mapping(ppo.get("kl"))
    if kl.get("place") == "loss" and kl.get("estimator", "k1") == "k1" and kl.get("controller") != "none":
        yield Violation(("ppo", "kl", "estimator" if "estimator" in kl else "place"), say.KL_LOSS)
    longest = _mapping(ppo.get("sampling")).get("maxResponseLength", 128)
    buffer = reward.get("overlongBuffer", 0)
    if isinstance(longest, int) and isinstance(buffer, int) and buffer > longest:
        yield Violation(("ppo", "reward", "overlongBuffer"), say.OVERLONG.format(buffer=buffer, longest=longest))
    url = _mapping(reward.get("http")).get("url")
    if isinstance(url, str) and not url.startswith(("http://", "https://")):
        yield Violation(("ppo", "reward", "http", "url"), say.HTTP_URL.format(url=url))
    yield from _ppo_offload(ppo)
    yield from _ppo_placement(ppo)


def _ppo_offload(ppo: Mapped) -> Iterator[Violation]:
    roles = _mapping(ppo.get("roles"))
    for path, own in (((), {}), *((("roles", role), _mapping(roles.get(role))) for role in ("actor", "critic"))):
        if path and not own.keys() & {"offload", "zero"}:
            continue  # it inherits both, and they were looked at
        offload = own.get("offload", ppo.get("offload"))
        zero = own.get("zero", ppo.get("zero", 2))
        if offload == "all" and zero != 3:
            yield Violation(("ppo", *path, "offload"), say.OFFLOAD_ALL)
        if offload == "optimizer" and zero == 0:
            yield Violation(("ppo", *path, "offload"), say.OFFLOAD_OPTIMIZER)


def _ppo_placement(ppo: Mapped) -> Iterator[Violation]:
    placement, rollout = ppo.get("placement", "colocated"), _mapping(ppo.get("rollout"))
    reasons = {"engine": rollout.get("engine") == "vllm", "staleness": rollout.get("staleness") == 1}
    alone = placement == "split" or (isinstance(placement, list) and ["rollout"] in placement)
    for name, wanted in reasons.items():
        if wanted and not alone:
            yield Violation(("ppo", "rollout", name), say.ROLLOUT_ALONE.format(name=name, value=rollout[name]))
    importance = _mapping(rollout.get("importance"))
    low, high = importance.get("low", 0.5), importance.get("high", 2.0)
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        yield Violation(("ppo", "rollout", "importance", "low"), say.IMPORTANCE.format(low=low, high=high))
    if not isinstance(placement, list):
        return
    flat = [r for group in placement if isinstance(group, list) for r in group]
    for role in sorted({r for r in flat if isinstance(r, str) and flat.count(r) > 1}):
        yield Violation(("ppo", "placement"), say.ROLE_TWICE.format(role=role))
    needed = ["actor", "rollout"]
    needed += ["reference"] if _mapping(ppo.get("kl")).get("controller") != "none" else []
    needed += ["critic"] if ppo.get("advantage", "gae") == "gae" else []
    needed += ["reward"] if _mapping(ppo.get("reward")).get("model") is not None else []
    if absent := [role for role in needed if role not in flat]:
        roles = f"{' and '.join(absent)} {'has' if len(absent) == 1 else 'have'}"
        yield Violation(("ppo", "placement"), say.ROLE_NOWHERE.format(roles=roles), "keys")


def _mapping(value: Any) -> Mapped:
    """The value if it is a mapping, else an empty one: a wrong type is the schema's business."""
    return value if isinstance(value, Mapping) else {}


def _stage_order(spec: Mapped, stages: list[Mapped], i: int) -> Iterator[Violation]:
    if i and not direct_needs(stages, i) and members(stages[i])[:1] not in ([], ["data"], ["tokenizer"]):
        kind = members(stages[i])[0]
        if stages[i].get("needs") == [] and not any(True for _ in references(kind, stages[i][kind])):
            yield Violation(("needs",), say.NOTHING_TO_DO)


def _groups(spec: Mapped) -> list[Mapped]:
    return _cluster_list(spec, "groups")


def _cluster_list(spec: Mapped, name: str) -> list[Mapped]:
    """The mappings of a list of `spec.cluster`; an item of the wrong type counts as an empty one."""
    items = _mapping(spec.get("cluster")).get(name)
    return [_mapping(item) for item in items] if isinstance(items, list) else []


_PIPELINE_RULES: tuple[Callable[[Mapped], Iterator[Violation]], ...] = (
    _credentials,
    _unique_names,
    _group_sizes,
    _env,
    _volumes,
    _pod_metadata,
)
_STAGE_RULES: tuple[Callable[[Mapped, list[Mapped], int], Iterator[Violation]], ...] = (
    _one_member,
    _needs_earlier,
    _references_fit,
    _has_model_and_tokenizer,
    _workers,
    _known_groups,
    _training,
    _trainer_arguments,
    _tokenizer,
    _ppo,
    _stage_order,
)
