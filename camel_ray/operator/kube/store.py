"""The local copy of one kind of objects, always moving forward.

Reflectors write what the server tells them, the controller adds the answers to its own writes (`put_if_newer`), and
everybody reads. What is stored is shared: nobody may change it. An older version never replaces a newer one, and a late
answer never brings back an object whose deletion was already seen.

Resource versions are compared as numbers, which Kubernetes promises for one kind since 1.35 and always did before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
        self._index_of = dict(indexes or {})
        self._lock = threading.Lock()
        self._objects: dict[Key, Object] = {}
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._index_of}
        self._seen: dict[str | None, int] = {}
        """Per watched namespace (None: all) the newest version the server has told of: what is not stored at that
        version does not exist at it."""

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        return self._objects.get((namespace or "", name))  # one lookup: atomic without the lock

    def all(self) -> Objects:
        """All objects, in no order."""
        with self._lock:
            return list(self._objects.values())

    def by(self, index: str, value: str) -> Objects:
        """The objects that an index has under a value, those that changed last at the end."""
        with self._lock:
            return [self._objects[key] for key in self._indexes[index].get(value, ())]

    def __len__(self) -> int:
        return len(self._objects)

    def shrink(self, obj: Object) -> Object:
        """The form in which an object is stored: trimmed, without managed fields; the stored one if it is the same."""
        metadata = obj["metadata"]
        known = self.get(metadata.get("namespace"), metadata["name"])
        if known is not None and known["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
            return known  # a list read again does not take memory twice
        metadata.pop("managedFields", None)
        return self._trim(obj) if self._trim else obj

    def put_if_newer(self, obj: Object) -> bool:
        """Store the server's answer to a write of ours, ahead of the watch. False if the store knows better.

        `changed` is not called, neither now nor when the watch brings this version. `obj` belongs to the store then.
        """
        obj = self.shrink(obj)
        with self._lock:
            key, version = _key(obj), _version(obj)
            seen = self._seen.get(None, self._seen.get(key[0]))
            if seen is None or (key not in self._objects and version <= seen):
                return False  # not listed yet, or deleted meanwhile
            return self._put(key, obj, version) is not None

    def put(self, stream: str | None, obj: Object) -> Change | None:
        """Store what the watch of a namespace tells. None if a newer version is there."""
        obj = self.shrink(obj)
        with self._lock:
            version = self._advance(stream, obj)
            return self._put(_key(obj), obj, version)

    def remove(self, stream: str | None, obj: Object) -> Change | None:
        """Take out what the watch of a namespace says is deleted. None if it is not there, or made anew meanwhile."""
        with self._lock:
            version, key = self._advance(stream, obj), _key(obj)
            old = self._objects.get(key)
            if old is None or _version(old) > version:
                return None
            return self._take(key), None

    def bookmark(self, stream: str | None, version: str) -> None:
        """Nothing else happened in a watched namespace up to a version."""
        with self._lock:
            self._seen[stream] = max(self._seen.get(stream, 0), int(version))

    def replace(self, stream: str | None, objects: Iterable[Object], version: str) -> list[Change]:
        """Take over a whole list of a watched namespace, and tell what became different, deletions included."""
        at = int(version)
        changes: list[Change] = []
        with self._lock:
            # A list that is older than what was seen before comes from a restored backup: all we know is void.
            back_in_time = at < self._seen.get(stream, 0)
            listed: set[Key] = set()
            for obj in objects:
                key = _key(obj)
                listed.add(key)
                if back_in_time and self._objects.get(key) is not obj:
                    changes.append((self._take(key), obj))
                    self._set(key, obj)
                elif change := self._put(key, obj, _version(obj)):
                    changes.append(change)
            for key in [key for key in self._objects if stream in (None, key[0]) and key not in listed]:
                if back_in_time or _version(self._objects[key]) <= at:  # else: our own write after the list was made
                    changes.append((self._take(key), None))
            self._seen[stream] = at
        return changes

    def clear(self, stream: str | None) -> list[Change]:
        """Forget all objects of a watched namespace: the server does not know their kind any more."""
        with self._lock:
            self._seen.pop(stream, None)
            keys = [key for key in self._objects if stream in (None, key[0])]
            return [(self._take(key), None) for key in keys]

    def _advance(self, stream: str | None, obj: Object) -> int:
        version = _version(obj)
        self._seen[stream] = max(self._seen.get(stream, 0), version)
        return version

    def _put(self, key: Key, obj: Object, version: int) -> Change | None:
        old = self._objects.get(key)
        if old is not None:
            if _version(old) >= version:
                return None
            self._take(key)
        self._set(key, obj)
        return old, obj

    def _set(self, key: Key, obj: Object) -> None:
        self._objects[key] = obj
        for name, index in self._index_of.items():
            for value in index(obj):
                self._indexes[name].setdefault(value, {})[key] = None

    def _take(self, key: Key) -> Object | None:
        old = self._objects.pop(key, None)
        if old is not None:
            for name, index in self._index_of.items():
                for value in index(old):
                    keys = self._indexes[name][value]
                    keys.pop(key, None)
                    if not keys:
                        del self._indexes[name][value]
        return old


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
