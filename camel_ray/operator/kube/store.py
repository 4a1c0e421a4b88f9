"""The local copy of one kind of objects, always moving forward.

Reflectors write what the server tells them, the controller adds the answers to its own writes (`put_if_newer`), and
everybody reads. An older version never replaces a newer one, and a late answer never brings back an object whose
deletion was already seen. Objects are kept packed; each reader gets a copy of its own.

Resource versions are compared as numbers, which Kubernetes promises for one kind since 1.35 and always did before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from camel_ray.operator.kube.packing import Packed, Packer

Object = dict[str, Any]
Objects = list[Object]
Index = Callable[[Object], Iterable[str]]
"""The values under which an object is found."""
Change = tuple[Object | None, Object | None]
"""Before and after; None where there was or is none."""
Key = tuple[str, str]


class Store:
    """Objects by namespace and name, and by indexes. Safe for any number of threads."""

    def __init__(
        self, trim: Callable[[Object], Object] | None = None, indexes: Mapping[str, Index] | None = None
    ) -> None:
        self._trim = trim
        self._packer = Packer()
        self._index_of = dict(indexes or {})
        self._lock = threading.Lock()
        self._objects: dict[Key, Packed] = {}
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._index_of}
        self._seen: dict[str | None, int] = {}
        """Per watched namespace (None: all) the newest version the server has told of: what is not stored at that
        version does not exist at it."""

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        packed = self._objects.get((namespace or "", name))  # one lookup: atomic without the lock
        return packed.open() if packed else None

    def all(self) -> Objects:
        """All objects, in no order. Opens each: to count them or to name them, use `counts`, `names` and `len`."""
        with self._lock:
            found = list(self._objects.values())
        return [packed.open() for packed in found]

    def names(self) -> list[Key]:
        """Namespace and name of all objects."""
        with self._lock:
            return list(self._objects)

    def by(self, index: str, value: str) -> Objects:
        """The objects that an index has under a value, those that changed last at the end."""
        with self._lock:
            found = [self._objects[key] for key in self._indexes[index].get(value, ())]
        return [packed.open() for packed in found]

    def counts(self, index: str) -> Mapping[str, int]:
        """The number of objects under each value of an index."""
        with self._lock:
            return {value: len(keys) for value, keys in self._indexes[index].items()}

    def __len__(self) -> int:
        return len(self._objects)

    def shrink(self, obj: Object) -> Packed:
        """The form in which an object is stored, for `replace`; the stored one if it is the same."""
        metadata = obj["metadata"]
        known = self._objects.get((metadata.get("namespace", ""), metadata["name"]))
        if known is not None and known.version == int(metadata["resourceVersion"]):
            return known  # a list read again does not take memory twice
        return self._packer.pack(self._trimmed(obj))

    def put_if_newer(self, obj: Object) -> bool:
        """Store the server's answer to a write of ours, ahead of the watch. False if the store knows better.

        `changed` is not called, neither now nor when the watch brings this version. `obj` belongs to the store then.
        """
        obj = self._trimmed(obj)
        packed = self._packer.pack(obj)
        with self._lock:
            seen = self._seen.get(None, self._seen.get(packed.key[0]))
            if seen is None or (packed.key not in self._objects and packed.version <= seen):
                return False  # not listed yet, or deleted meanwhile
            return self._put(packed, obj) is not None

    def put(self, stream: str | None, obj: Object) -> Change | None:
        """Store what the watch of a namespace tells. None if a newer version is there."""
        obj = self._trimmed(obj)
        packed = self._packer.pack(obj)
        with self._lock:
            self._advance(stream, packed.version)
            return self._put(packed, obj)

    def remove(self, stream: str | None, obj: Object) -> Change | None:
        """Take out what the watch of a namespace says is deleted. None if it is not there, or made anew meanwhile."""
        version, key = _version(obj), _key(obj)
        with self._lock:
            self._advance(stream, version)
            old = self._objects.get(key)
            if old is None or old.version > version:
                return None
            return self._take(key), None

    def bookmark(self, stream: str | None, version: str) -> None:
        """Nothing else happened in a watched namespace up to a version."""
        with self._lock:
            self._advance(stream, int(version))

    def replace(self, stream: str | None, objects: Iterable[Packed], version: str) -> Iterator[Change]:
        """Take over a whole list of a watched namespace, and tell what became different, deletions included.

        All is done when this returns; what comes from the iterator is opened one by one, as a list may be long.
        """
        at = int(version)
        changes: list[tuple[Packed | None, Packed | None]] = []
        with self._lock:
            # A list that is older than what was seen before comes from a restored backup: all we know is void.
            back_in_time = at < self._seen.get(stream, 0)
            listed: set[Key] = set()
            for packed in objects:
                listed.add(packed.key)
                old = self._objects.get(packed.key)
                if old is None or (old is not packed if back_in_time else old.version < packed.version):
                    changes.append((old, packed))
                    self._exchange(packed, packed.open())
            for old in [old for key, old in self._objects.items() if stream in (None, key[0]) and key not in listed]:
                if back_in_time or old.version <= at:  # else: our own write after the list was made
                    changes.append((old, None))
                    self._take(old.key)
            self._seen[stream] = at
        return _opened(changes)

    def clear(self, stream: str | None) -> Iterator[Change]:
        """Forget all objects of a watched namespace: the server does not know their kind any more."""
        with self._lock:
            self._seen.pop(stream, None)
            gone = [packed for key, packed in self._objects.items() if stream in (None, key[0])]
            for packed in gone:
                self._take(packed.key)
        return _opened((packed, None) for packed in gone)

    def _trimmed(self, obj: Object) -> Object:
        obj["metadata"].pop("managedFields", None)
        return self._trim(obj) if self._trim else obj

    def _advance(self, stream: str | None, version: int) -> None:
        self._seen[stream] = max(self._seen.get(stream, 0), version)

    def _put(self, packed: Packed, obj: Object) -> Change | None:
        """Store `packed`, which is `obj`, unless a newer version is there."""
        old = self._objects.get(packed.key)
        return None if old is not None and old.version >= packed.version else self._exchange(packed, obj)

    def _exchange(self, packed: Packed, obj: Object) -> Change:
        old = self._take(packed.key)
        self._set(packed, obj)
        return old, obj

    def _set(self, packed: Packed, obj: Object) -> None:
        self._objects[packed.key] = packed
        for name, index in self._index_of.items():
            for value in index(obj):
                self._indexes[name].setdefault(value, {})[packed.key] = None

    def _take(self, key: Key) -> Object | None:
        packed = self._objects.pop(key, None)
        if packed is None:
            return None
        old = packed.open()
        for name, index in self._index_of.items():
            for value in index(old):
                keys = self._indexes[name][value]
                keys.pop(key, None)
                if not keys:
                    del self._indexes[name][value]
        return old


def _opened(changes: Iterable[tuple[Packed | None, Packed | None]]) -> Iterator[Change]:
    for old, new in changes:
        yield old.open() if old else None, new.open() if new else None


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
