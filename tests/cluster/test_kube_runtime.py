"""The Kubernetes runtime against a real API server: verbs, reflectors, events and the lease."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from camel_ray.operator.kube import events as events_module
from camel_ray.operator.kube import reflector as reflector_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import from_kubeconfig
from camel_ray.operator.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, Unauthorized
from camel_ray.operator.kube.events import EventRecorder
from camel_ray.operator.kube.kinds import CONFIG_MAP, CUSTOM_RESOURCE_DEFINITION, EVENT, LEASE, POD, Kind
from camel_ray.operator.kube.lease import LeaderElection
from camel_ray.operator.kube.reflector import Reflector
from rig.control_plane import ControlPlane
from rig.kube import Candidate, Mirror, config_map, mirrored, wait_until

WIDGET = Kind("test.camel-ray.dev", "v1", "Widget", "widgets")


def test_each_verb_does_what_it_says_and_fails_as_what_it_is(admin: Client, namespace: str) -> None:
    made = admin.create(CONFIG_MAP, config_map(namespace, "a", x="1"))
    with pytest.raises(AlreadyExists, match=f'create configmaps {namespace}/a failed with 409 AlreadyExists: .*"a"'):
        admin.create(CONFIG_MAP, config_map(namespace, "a"))
    assert admin.get(CONFIG_MAP, "a", namespace)["data"] == {"x": "1"}
    with pytest.raises(NotFound):
        admin.get(CONFIG_MAP, "b", namespace)

    changed = admin.replace(CONFIG_MAP, {**made, "data": {"x": "2"}})
    with pytest.raises(Conflict):
        admin.replace(CONFIG_MAP, {**made, "data": {"x": "3"}})
    assert admin.patch(CONFIG_MAP, "a", namespace, {"data": {"y": "4"}})["data"] == {"x": "2", "y": "4"}
    good = [{"op": "test", "path": "/data/x", "value": "2"}, {"op": "replace", "path": "/data/x", "value": "5"}]
    assert admin.patch(CONFIG_MAP, "a", namespace, good)["data"] == {"x": "5", "y": "4"}
    with pytest.raises(Invalid):
        admin.patch(CONFIG_MAP, "a", namespace, good)
    with pytest.raises(Invalid, match=r"metadata\.name"):
        admin.create(CONFIG_MAP, config_map(namespace, "NOT_A_NAME"))

    admin.delete(CONFIG_MAP, "a", namespace, uid="00000000-0000-0000-0000-000000000000")
    assert admin.get(CONFIG_MAP, "a", namespace)["metadata"]["uid"] == changed["metadata"]["uid"]
    admin.delete(CONFIG_MAP, "a", namespace, uid=changed["metadata"]["uid"], version="1")  # not as it is now: it stays
    assert admin.get(CONFIG_MAP, "a", namespace)["metadata"]["uid"] == changed["metadata"]["uid"]
    admin.delete(CONFIG_MAP, "a", namespace, uid=changed["metadata"]["uid"])
    admin.delete(CONFIG_MAP, "a", namespace)
    with pytest.raises(NotFound):
        admin.get(CONFIG_MAP, "a", namespace)


def test_apply_owns_its_fields_and_respects_those_of_others(
    admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    other = Client(from_kubeconfig(str(control_plane.kubeconfig())), manager="other")
    admin.apply(CONFIG_MAP, config_map(namespace, "shared", ours="1", gone="1"))
    other.apply(CONFIG_MAP, {"metadata": {"name": "shared", "namespace": namespace}, "data": {"theirs": "1"}})
    assert admin.apply(CONFIG_MAP, config_map(namespace, "shared", ours="2"))["data"] == {"ours": "2", "theirs": "1"}
    wanted = {"metadata": {"name": "shared", "namespace": namespace}, "data": {"ours": "3"}}
    with pytest.raises(Conflict, match=r'conflict with "test": \.data\.ours'):
        other.apply(CONFIG_MAP, wanted, force=False)
    assert other.apply(CONFIG_MAP, wanted)["data"] == {"ours": "3"}  # it no longer names `theirs`, so that goes
    other.close()


def test_lists_come_whole_in_pages(admin: Client, namespace: str) -> None:
    for number in range(25):
        admin.create(CONFIG_MAP, config_map(namespace, f"c{number:02}", n=str(number)))
    items, version = admin.list(CONFIG_MAP, namespace, labels="app=test", page=10)
    assert [item["metadata"]["name"] for item in items] == [f"c{number:02}" for number in range(25)]
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
    assert int(version) >= max(int(item["metadata"]["resourceVersion"]) for item in items)
    assert len(admin.list(CONFIG_MAP, namespace, fields="metadata.name=c07")[0]) == 1


def test_a_service_account_without_rights_is_forbidden_and_one_with_a_wrong_token_unknown(
    control_plane: ControlPlane, namespace: str
) -> None:
    path = control_plane.service_account(namespace, "nobody")
    client = Client(from_kubeconfig(str(path)), manager="test")
    with pytest.raises(Forbidden, match="cannot list resource"):
        client.list(POD, namespace)
    path.with_suffix(".token").write_text("wrong")
    with pytest.raises(Unauthorized):
        client.list(POD, namespace)
    control_plane.service_account(namespace, "nobody")  # rotated: read again without a restart
    with pytest.raises(Forbidden):
        client.list(POD, namespace)
    client.close()


def test_the_reflector_follows_what_happens(admin: Client, namespace: str) -> None:
    with mirrored(admin, namespace) as (reflector, mirror):
        made = admin.create(CONFIG_MAP, config_map(namespace, "a", x="1"))
        admin.create(CONFIG_MAP, {"metadata": {"name": "unlabelled", "namespace": namespace}})
        wait_until(lambda: "a" in mirror.objects)
        admin.patch(CONFIG_MAP, "a", namespace, {"data": {"x": "2"}})
        wait_until(lambda: mirror.objects["a"]["data"] == {"x": "2"})
        assert "managedFields" not in mirror.objects["a"]["metadata"]
        assert reflector.store.put_if_newer(made) is False  # an old answer does not bring the past back
        admin.patch(CONFIG_MAP, "a", namespace, {"metadata": {"labels": {"app": "other"}}})
        wait_until(lambda: not mirror.objects)
        assert reflector.store.put_if_newer(made) is False  # nor the dead
        assert reflector.age_seconds() < 30


def test_our_own_write_is_in_the_store_at_once_and_is_not_told_twice(admin: Client, namespace: str) -> None:
    with mirrored(admin, namespace) as (reflector, mirror):
        for number in range(20):
            answer = admin.apply(CONFIG_MAP, config_map(namespace, "own", n=str(number)))
            reflector.store.put_if_newer(answer)
            stored = reflector.store.get(namespace, "own")
            assert stored is not None and stored["data"] == {"n": str(number)}
        admin.create(CONFIG_MAP, config_map(namespace, "end"))
        wait_until(lambda: "end" in mirror.objects)
        stored = reflector.store.get(namespace, "own")
        assert stored is not None and stored["data"] == {"n": "19"}


def test_a_kind_that_is_not_served_has_no_objects_until_it_is(
    admin: Client, control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector_module, "_MAX_DELAY_SECONDS", 0.5)
    mirror = Mirror()
    reflector = Reflector(admin, WIDGET, changed=mirror)
    reflector.start()
    wait_until(lambda: reflector.synced)
    assert (reflector.served, len(reflector.store)) == (False, 0)
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    spec = {"group": WIDGET.group, "scope": "Namespaced", "names": names, "versions": [version]}
    admin.create(CUSTOM_RESOURCE_DEFINITION, {"metadata": {"name": "widgets.test.camel-ray.dev"}, "spec": spec})

    def create() -> bool:
        try:
            admin.create(WIDGET, {"metadata": {"name": "w", "namespace": namespace}})
        except NotFound:
            return False
        return True

    wait_until(create)
    wait_until(lambda: "w" in mirror.objects)
    assert reflector.served
    admin.delete(CUSTOM_RESOURCE_DEFINITION, "widgets.test.camel-ray.dev")
    wait_until(lambda: not mirror.objects)
    reflector.stop()


def test_the_same_event_is_one_object_that_counts(
    admin: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_PATCH_SECONDS", 0.2)
    about = admin.create(CONFIG_MAP, config_map(namespace, "subject"))
    recorder = EventRecorder(admin, controller="camel-ray.dev/operator", instance="test-1")

    def events() -> list[dict[str, Any]]:
        return sorted(admin.list(EVENT, namespace)[0], key=lambda event: str(event["reason"]))

    recorder.record(about, "Warning", "Failed", "it broke", "Reconcile")
    recorder.record(about, "Normal", "Started", "x" * 2000, "Reconcile")
    for _ in range(6):
        recorder.record(about, "Warning", "Failed", "it broke", "Reconcile")
    wait_until(lambda: len(found := events()) == 2 and found[0].get("series", {}).get("count") == 7)
    recorder.record(about, "Warning", "Failed", "it broke", "Reconcile")
    recorder.close()
    failed, started = events()
    assert failed["series"]["count"] == 8
    assert (failed["type"], failed["note"], failed["reportingInstance"]) == ("Warning", "it broke", "test-1")
    assert failed["regarding"]["uid"] == about["metadata"]["uid"]
    assert len(started["note"]) == 1024 and "series" not in started
    assert recorder.dropped == 0


def test_a_frozen_leader_is_replaced_and_knows_it_when_it_wakes(
    admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    first = Candidate(control_plane.kubeconfig(), namespace, "first")
    second = None
    try:
        assert first.line() == "leads True"
        second = Candidate(control_plane.kubeconfig(), namespace, "second")
        first.process.send_signal(signal.SIGSTOP)
        assert second.line() == "leads True"
        lease = admin.get(LEASE, "leader", namespace)["spec"]
        assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("second", 1)
        first.process.send_signal(signal.SIGCONT)
        assert [first.line(), first.line()] == ["stopped False", "lost"]

        third = Candidate(control_plane.kubeconfig(), namespace, "third")
        try:
            assert second.process.stdin is not None
            second.process.stdin.close()  # asked to stop: the lease is given back, and nobody waits for its end
            assert second.line() == "stopped True"
            assert second.process.wait(30) == 0
            assert third.line() == "leads True"
        finally:
            third.close()
    finally:
        first.close()
        if second is not None and second.process.stdin is not None and not second.process.stdin.closed:
            second.close()
        elif second is not None and second.process.stdout is not None:
            second.process.stdout.close()


def test_only_one_of_many_candidates_leads_at_a_time(admin: Client, namespace: str) -> None:
    leading: list[str] = []
    overlaps: list[list[str]] = []
    terms = threading.Semaphore(0)

    def stand(identity: str) -> None:
        election = LeaderElection(
            admin, name="leader", namespace=namespace, identity=identity,
            lease_seconds=15, renew_seconds=10, retry_seconds=0.1,
        )  # fmt: skip

        def lead(stop: threading.Event) -> None:
            leading.append(identity)
            if len(leading) > 1:
                overlaps.append(list(leading))
            stop.wait(0.3)
            leading.remove(identity)
            terms.release()

        election.run(lead)

    threads = [threading.Thread(target=stand, args=(f"c{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert admin.get(LEASE, "leader", namespace)["spec"]["leaseTransitions"] == 4
    assert admin.get(LEASE, "leader", namespace)["spec"]["holderIdentity"] == ""
