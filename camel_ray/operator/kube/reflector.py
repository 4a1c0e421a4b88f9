"""Keeps a `Store` equal to what the API server has, and tells of each difference.

One thread per namespace (or one for all): list, then watch from there; when the watch ends, watch on from the last
version it told; when that is too old (410), list again and work out what was missed. A server that is away is asked
again more and more slowly; the store keeps what it has meanwhile, and `age_seconds` says how old that may be.

A namespace that we may not read (403) stops only itself: whoever owns it may take our rights, and nobody else shall
suffer. The store keeps what it has of it, and `readable` says that it is no ground for decisions any more.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import Forbidden, Gone, KubeError, NotFound, Unreachable
from camel_ray.operator.kube.kinds import Kind
from camel_ray.operator.kube.store import Index, Object, Store
from camel_ray.operator.kube.stream import Watch

__all__ = ["Reflector", "Store"]

IDLE_SECONDS = 70.0
"""Silence after which a watch is dead: a healthy server sends a bookmark each minute."""
QUIET_SECONDS = 330.0
"""The same for kinds without bookmarks: the server itself ends each watch before."""
_PAGE = 100
"""Objects per answer to a list. What is not yet packed sets the peak of memory, and most of it stays with the process:
500 pods as dicts take 15 MB, and several kinds are read at once."""
_FIRST_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
_STUBBORN = 3  # failures in a row before the list is read again: a restored server may not know our version
_SHORT_SECONDS = 1.0  # a watch that ends sooner, without an event, failed: asking again at once would be a storm

_log = logging.getLogger(__name__)

Changed = Callable[[Object | None, Object | None], None]


class Reflector:
    """Reflects the objects of one kind that match the selectors.

    `changed(old, new)` is called from the reflector's threads, outside of the store's lock and after the store has the
    change: (None, new) for an object that appeared, (old, None) for one that went. Calls for one object come in order.
    A kind the server does not serve (no such CRD) counts as one without objects, and is looked for again, in each of
    `kind` and `older`: the same kind in versions that older servers serve.
    `again(namespace)` is called from the same threads when a namespace may be read again, and when a kind begins or
    ceases to be served: all there has to be looked at, though perhaps no object is different.
    """

    def __init__(
        self,
        client: Client,
        kind: Kind,
        *,
        older: Sequence[Kind] = (),
        namespaces: Sequence[str | None] = (None,),
        labels: str = "",
        fields: str = "",
        trim: Callable[[Object], Object] | None = None,
        indexes: Mapping[str, Index] | None = None,
        bookmarks: bool = True,
        changed: Changed,
        again: Callable[[str | None], None] = lambda namespace: None,
    ) -> None:
        """`bookmarks`: False for kinds that get none (events), where a silent minute says nothing."""
        self.kind = kind
        self.store = Store(trim, indexes)
        self._followers = [
            _Follower(client, (kind, *older), namespace, labels, fields, self.store, changed, again, bookmarks)
            for namespace in dict.fromkeys(namespaces)
        ]

    def start(self) -> None:
        """Begin, in own threads."""
        for follower in self._followers:
            follower.thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the watches and wait for the threads; one that waits for a hanging server's answer is left behind."""
        for follower in self._followers:
            follower.stop()
        for follower in self._followers:
            if follower.thread.ident is not None:
                follower.thread.join(timeout)

    @property
    def synced(self) -> bool:
        """Whether all namespaces were listed that we may read, and there is one."""
        return not self.waiting and any(follower.readable for follower in self._followers)

    @property
    def waiting(self) -> bool:
        """Whether a namespace was not listed yet that, for all we know, we may read."""
        return not all(follower.listed or follower.forbidden for follower in self._followers)

    def readable(self, namespace: str | None) -> bool:
        """Whether the store holds all of a watched namespace, and so is ground for decisions about it."""
        return any(follower.readable for follower in self._followers if follower.namespace in (None, namespace))

    @property
    def served(self) -> bool:
        """Whether the server knows the kind, as far as it was asked."""
        return all(follower.served for follower in self._followers)

    def age_seconds(self) -> float:
        """Seconds since the last sign of life (list, event, bookmark) of the namespace that is silent for the longest.

        A healthy server sends a bookmark each minute. That we may not read a namespace is an answer too: a new process
        would get the same.
        """
        return time.monotonic() - min(follower.alive for follower in self._followers)


class _Follower:
    """The thread that follows one namespace, or all, and what it knows."""

    def __init__(
        self,
        client: Client,
        kinds: Sequence[Kind],
        namespace: str | None,
        labels: str,
        fields: str,
        store: Store,
        changed: Changed,
        again: Callable[[str | None], None],
        bookmarks: bool,
    ) -> None:
        self._idle_seconds = IDLE_SECONDS if bookmarks else QUIET_SECONDS
        self._client = client
        self._kinds = kinds
        self._kind = kinds[0]
        """The version that the server serves, as far as we know."""
        self._missing = 0
        """How many of the versions it was found not to serve, in a row."""
        self.namespace = namespace
        self._labels = labels
        self._fields = fields
        self._store = store
        self._changed = changed
        self._again = again
        self._name = f"{self._kind.plural} of {namespace or 'all namespaces'}"
        self._version: str | None = None
        """Where to watch on from; None: list first."""
        self._failures = 0
        self._watch: Watch | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.listed = False
        self.served = True
        self.forbidden = False
        """Whether we may not read it. The store is as it was before, not as it is now."""
        self.alive = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=f"reflect {self._name}", daemon=True)

    @property
    def readable(self) -> bool:
        """Whether the store holds all that there is."""
        return self.listed and not self.forbidden

    def stop(self) -> None:
        """Make the thread end."""
        self._stopped.set()
        with self._lock:
            if self._watch is not None:
                self._watch.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._version is None:
                    self._list()
                else:
                    self._follow(self._version)
                if not self.forbidden:
                    self._failures = 0
            except Gone:
                _log.info("%s: the version %s is too old, listing again", self._name, self._version)
                self._version = None
                self._stopped.wait(random.uniform(0.0, 1.0))
            except NotFound:
                self._version = None
                if self._other_version():
                    continue
                self._not_served()
                self._failures += 1
                self._pause()  # not for long at first: with an installation, its kinds come moments after its pods
            except Forbidden as error:
                self._forbid(error)
                self._failures += 1
                self._pause()
            except Exception as error:
                # Not only KubeError: a bug in `trim` or an index must not end the thread, for nobody would notice.
                expected = isinstance(error, KubeError)
                level = logging.WARNING if expected else logging.ERROR
                _log.log(level, "%s: %s", self._name, error, exc_info=not expected)
                self._failures += 1
                if self._failures % _STUBBORN == 0:
                    self._version = None
                self._pause()

    def _pause(self) -> None:
        """Wait before the next try: longer after each failure in a row."""
        delay = min(_FIRST_DELAY_SECONDS * 2 ** min(self._failures - 1, 10), _MAX_DELAY_SECONDS)
        self._stopped.wait(delay * random.uniform(0.5, 1.0))

    def _list(self) -> None:
        objects, version = self._client.list_each(
            self._kind, self.namespace, self._store.shrink, labels=self._labels, fields=self._fields, page=_PAGE
        )
        changes = self._store.replace(self.namespace, objects, version)
        self._version, self.alive, self._missing = version, time.monotonic(), 0
        again = not self.served
        self.listed = self.served = True
        for old, new in changes:
            self._tell(old, new)
        if again:
            self._say(self._again, self.namespace)

    def _other_version(self) -> bool:
        """Take the next version of the kind; False when the server serves none."""
        self._missing = (self._missing + 1) % len(self._kinds)
        self._kind = self._kinds[(self._kinds.index(self._kind) + 1) % len(self._kinds)]
        return self._missing > 0

    def _forbid(self, error: Forbidden) -> None:
        # The store is not cleared: that would tell of deletions that never were, such as of pods at work.
        if not self.forbidden:
            _log.warning("%s: may not be read, so whatever rests on them waits: %s", self._name, error)
        self.forbidden, self._version, self.alive = True, None, time.monotonic()

    def _not_served(self) -> None:
        if self.served:
            _log.info("%s: the API server does not serve this kind", self._name)
        again = self.forbidden or (self.listed and self.served)
        self.alive = time.monotonic()
        self.listed, self.served, self.forbidden = True, False, False
        for old, new in self._store.clear(self.namespace):
            self._tell(old, new)
        if again:
            self._say(self._again, self.namespace)

    def _follow(self, version: str) -> None:
        started, events = time.monotonic(), 0
        watch = self._client.watch(
            self._kind,
            self.namespace,
            resource_version=version,
            labels=self._labels,
            fields=self._fields,
            idle_seconds=self._idle_seconds,
        )
        self.alive = time.monotonic()  # it was answered
        if self.forbidden:  # until now: who may list and not watch would go back and forth
            self.forbidden = False
            _log.warning("%s: may be read again", self._name)
            self._say(self._again, self.namespace)
        with self._lock:
            self._watch = watch
        if self._stopped.is_set():  # `stop` came before there was a watch to close
            watch.close()
        try:
            for event in watch:
                self._take(event["type"], event["object"])
                events += 1
        finally:
            watch.close()
        if not events and time.monotonic() - started < _SHORT_SECONDS and not self._stopped.is_set():
            raise Unreachable(f"watch {self._kind.plural} ended at once without an event")

    def _take(self, kind: str, obj: Object) -> None:
        self.alive, self._failures = time.monotonic(), 0
        version = obj["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            self._store.bookmark(self.namespace, version)
        else:
            put = self._store.remove if kind == "DELETED" else self._store.put
            if change := put(self.namespace, obj):
                self._tell(*change)
        self._version = version

    def _tell(self, old: Object | None, new: Object | None) -> None:
        self._say(self._changed, old, new)

    def _say(self, listener: Callable[..., None], *words: object) -> None:
        try:
            listener(*words)
        except Exception:  # a bug of the listener must not end the thread
            _log.exception("%s: the listener failed", self._name)
