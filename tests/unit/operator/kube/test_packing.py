"""Objects at rest take little memory and come back as they were."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from camel_ray.operator.kube.packing import Packer
from camel_ray.operator.kube.store import Store

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def job(number: int, **more: Any) -> dict[str, Any]:
    """A finished Job, as trimmed."""
    labels = {
        "camel-ray.dev/pipeline": f"demo-{number}",
        "camel-ray.dev/stage": "pretrain",
        "camel-ray.dev/attempt": "1",
    }
    words = "Reached expected number of succeeded pods"
    condition = {"type": "Complete", "status": "True", "reason": "CompletionsReached", "message": words}
    metadata = {
        "name": f"demo-{number}-pretrain-1",
        "namespace": "team",
        "uid": f"{number * 7919:032x}",
        "resourceVersion": str(number + 1),
        "labels": labels,
        "ownerReferences": [{"kind": "CamelPipeline", "name": f"demo-{number}", "uid": f"{number * 104729:032x}"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "status": {"conditions": [condition]},
        **more,
    }


@given(things=st.lists(JSON, min_size=1, max_size=5))
def test_what_is_packed_comes_back_as_it_was_whatever_came_before_it(things: list[Any]) -> None:
    packer = Packer()
    objects = [job(number, spec=thing) for number, thing in enumerate(things)]
    packed = [packer.pack(thing) for thing in objects]
    assert [one.open() for one in packed] == objects
    assert [(one.key, one.version) for one in packed] == [
        (("team", f"demo-{number}-pretrain-1"), number + 1) for number in range(len(things))
    ]


def test_an_object_beyond_the_window_is_no_dictionary_and_comes_back_too() -> None:
    packer = Packer()
    objects = [job(number, spec={"text": "".join(map(chr, range(40, 9000)))}) for number in range(3)]
    assert [packer.pack(thing).open() for thing in objects] == objects
    assert packer._like == b""


def test_the_reader_of_a_store_may_change_what_it_gets() -> None:
    store = Store()
    store.put(None, job(1))
    thing = store.get("team", "demo-1-pretrain-1")
    assert thing is not None
    thing["metadata"]["labels"].clear()
    assert store.get("team", "demo-1-pretrain-1") == job(1)


def test_a_thousand_finished_jobs_take_less_than_a_megabyte() -> None:
    store = Store(indexes={"pipeline": lambda thing: [thing["metadata"]["labels"]["camel-ray.dev/pipeline"]]})
    for number in range(300):  # what a store needs once
        store.put(None, job(number))
    tracemalloc.start()
    try:
        for number in range(1000, 2000):
            store.put(None, job(number))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1_000_000
    assert store.counts("pipeline")["demo-1500"] == 1
