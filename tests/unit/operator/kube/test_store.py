from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from camel_ray.operator.kube.store import Change, Object, Store


def obj(name: str, version: int, namespace: str = "n", **fields: Any) -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": str(version)}, **fields}


def read(store: Store, stream: str | None, objects: list[Object], version: str) -> list[Change]:
    """A list as the reflector takes it in."""
    return list(store.replace(stream, [store.shrink(item) for item in objects], version))


def names(store: Store) -> dict[str, int]:
    return {o["metadata"]["name"]: int(o["metadata"]["resourceVersion"]) for o in store.all()}


def test_objects_are_trimmed_and_found_by_index() -> None:
    def owners(item: Object) -> list[str]:
        return [item["owner"]] if "owner" in item else []

    def trim(item: Object) -> Object:
        item.pop("spec", None)
        return item

    store = Store(trim=trim, indexes={"owner": owners})
    first = obj("a", 1, owner="x", spec={"big": 1})
    first["metadata"]["managedFields"] = [{}]
    store.put("n", first)
    store.put("n", obj("b", 2, owner="x"))
    assert store.get("n", "a") == obj("a", 1, owner="x")
    assert [o["metadata"]["name"] for o in store.by("owner", "x")] == ["a", "b"]
    store.put("n", obj("a", 3, owner="y"))
    assert [o["metadata"]["name"] for o in store.by("owner", "x")] == ["b"]
    store.remove("n", obj("b", 4))
    assert (store.by("owner", "x"), len(store)) == ([], 1)


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    read(store, "n", [obj("a", 5)], "5")
    assert store.put_if_newer(obj("a", 7, mine=True))
    assert store.put("n", obj("a", 6)) is None
    assert store.put("n", obj("a", 7)) is None
    assert store.remove("n", obj("a", 6)) is None  # the deletion of a predecessor
    assert store.get("n", "a") == obj("a", 7, mine=True)
    change = store.put("n", obj("a", 8))
    assert change == (obj("a", 7, mine=True), obj("a", 8))


def test_a_late_answer_does_not_bring_back_the_dead() -> None:
    store = Store()
    assert not store.put_if_newer(obj("a", 1))  # nothing is known yet
    read(store, None, [obj("a", 5)], "6")
    store.remove(None, obj("a", 9))
    assert not store.put_if_newer(obj("a", 8))
    store.bookmark(None, "20")
    assert not store.put_if_newer(obj("b", 15))
    assert store.put_if_newer(obj("b", 21))
    assert names(store) == {"b": 21}


def test_a_list_tells_what_was_missed_and_keeps_what_is_newer_than_itself() -> None:
    store = Store()
    read(store, "n", [obj("stays", 1), obj("goes", 2), obj("changes", 3)], "3")
    store.put_if_newer(obj("ours", 12))
    changes = read(store, "n", [obj("stays", 1), obj("changes", 8), obj("new", 9)], "10")
    assert changes == [(obj("changes", 3), obj("changes", 8)), (None, obj("new", 9)), (obj("goes", 2), None)]
    assert names(store) == {"stays": 1, "changes": 8, "new": 9, "ours": 12}


def test_a_list_of_a_restored_backup_counts_although_it_is_older() -> None:
    store = Store()
    read(store, "n", [obj("a", 50), obj("b", 60), obj("same", 10)], "100")
    changes = read(store, "n", [obj("a", 20), obj("same", 10)], "40")
    assert changes == [(obj("a", 50), obj("a", 20)), (obj("b", 60), None)]
    assert names(store) == {"a": 20, "same": 10}
    assert store.put("n", obj("b", 41)) == (None, obj("b", 41))


def test_one_namespace_does_not_touch_another() -> None:
    store = Store()
    read(store, "n", [obj("a", 1)], "1")
    read(store, "m", [obj("a", 2, "m")], "2")
    assert read(store, "m", [], "3") == [(obj("a", 2, "m"), None)]
    assert list(store.clear("n")) == [(obj("a", 1), None)]
    assert len(store) == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "answer", "watch", "list"]), st.sampled_from(["a", "b", "c"])),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, lateness=st.lists(st.integers(0, 10), min_size=1, max_size=10))
def test_whatever_comes_late_the_store_ends_up_equal_to_the_server(
    steps: list[tuple[str, str]], lateness: list[int]
) -> None:
    """A server, its history, and answers to our writes that reach the store at any later time."""
    store, version = Store(), 1
    server: dict[str, int] = {}
    history: list[tuple[str, Object]] = []
    answers: list[Object] = []
    told: dict[str, int] = {}
    own: set[int] = set()

    def tell(change: tuple[Object | None, Object | None] | None) -> None:
        if change is None:
            return
        old, new = change
        if new is None:
            assert old is not None
            told.pop(old["metadata"]["name"], None)
        else:
            told[new["metadata"]["name"]] = int(new["metadata"]["resourceVersion"])

    for change in read(store, None, [], "1"):
        tell(change)
    for number, (step, name) in enumerate(steps):
        if step == "write":
            version += 1
            server[name] = version
            history.append(("PUT", obj(name, version)))
            answers.append(obj(name, version))
        elif step == "delete" and name in server:
            version += 1
            del server[name]
            history.append(("DELETED", obj(name, version)))
        elif step == "answer" and answers:
            answer = answers.pop(lateness[number % len(lateness)] % len(answers))
            if store.put_if_newer(answer):
                own.add(int(answer["metadata"]["resourceVersion"]))
        elif step == "watch" and history:
            kind, item = history.pop(0)
            before = names(store)
            tell(store.remove(None, item) if kind == "DELETED" else store.put(None, item))
            assert all(names(store).get(key, version) >= before[key] for key in before)
        elif step == "list":
            history.clear()
            for change in read(store, None, [obj(n, v) for n, v in server.items()], str(version)):
                tell(change)
            assert names(store) == server
    for kind, item in history:
        tell(store.remove(None, item) if kind == "DELETED" else store.put(None, item))
    for answer in answers:
        store.put_if_newer(answer)
    assert names(store) == server
    for name, at in server.items():
        assert told.get(name) == at or at in own  # our own writes are not told again
