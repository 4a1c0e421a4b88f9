"""The process user code runs in, started by `process.py` as a plain script: `child.py HANDLER`.

Imports nothing of ours, so that it starts in milliseconds and user code gets a clean interpreter. It speaks JSON lines:
first {source, path, name}, answered by {result: null} once the object `name` is loaded; then any request, which
`handle(object, request)` of the Python file HANDLER turns into a reply {result} or {error, detail}.

- User code runs in the main thread, where it may use signals. A second thread reads the requests; it kills the whole
  process group when the driver is gone, even in the middle of a call.
- User code never holds the channel: its stdin is empty, and what it prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_MAX_DETAIL = 500


def _load(source: str, path: Path, name: str) -> Any:
    """The object `name` of a module made from source text: the file may have changed, or live on another machine."""
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path)]
    # Dataclasses and pickle look their module up by name; a name that is taken stays with its owner.
    module = types.ModuleType(path.stem if path.stem not in sys.modules else f"user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    found = getattr(module, name, None)
    if not callable(found):
        raise AttributeError(f"it defines no '{name}' that can be called")
    return found


def _report(error: BaseException, path: str) -> dict[str, str]:
    """Type, message and the last line of the user's file an exception came through."""
    try:
        message = str(error)
    except Exception:  # an exception of the user may be broken itself
        message = ""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"line {line}" if line is not None else ""
    return {"error": type(error).__name__, "detail": ", ".join(p for p in (message[:_MAX_DETAIL], where) if p)}


def _read(stream: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        requests.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(handler: str) -> None:
    """Serve requests until killed."""
    own = os.getpid()
    stream, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(stream, requests), daemon=True).start()
    handle: Callable[[Any, Any], Any] = runpy.run_path(handler)["handle"]
    target: Any = None
    path = ""
    while True:
        request = json.loads(requests.get())
        try:
            if target is None:
                path = request["path"]
                target = _load(request["source"], Path(path), request["name"])
                reply = json.dumps({"result": None})
            else:
                reply = json.dumps({"result": handle(target, request)})
        except BaseException as error:  # sys.exit in user code is a failed call like any other
            reply = json.dumps(_report(error, path))
        if os.getpid() != own:
            os._exit(0)  # user code forked and let the copy return: one of them may answer
        replies.write(reply.encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
