"""The processes a user's environment class runs in. Started by `client.py` as a plain script; imports nothing of ours.

The first process reads the class's source from stdin, loads it, and from then on only forks: every conversation gets a
process of its own, so that one that hangs, crashes or draws random numbers touches no other, and what the file loads
at its top level (a data set, an index) is loaded once and shared.

Two kinds of sockets, both inherited. Control: requests `(operation, number)`, 9 bytes, answered by one signed number of
8 bytes; `F` (fork) carries the conversation's socket and answers with its process, `K` (kill) ends a process and its
children and answers with how it ended. Conversation: JSON lines, a request {reset | step}, a reply {message, reward,
done} or {error, detail}.
"""

from __future__ import annotations

import contextlib
import gc
import json
import linecache
import os
import random
import signal
import socket
import struct
import sys
import traceback
import types
from pathlib import Path
from typing import Any

REQUEST = struct.Struct("!cq")
REPLY = struct.Struct("!q")
_MAX_DETAIL = 500


def _load(source: str, path: str, name: str) -> type[Any]:
    # The folder may be missing on this node; where it is there, the file can import its neighbours.
    sys.path.insert(0, str(Path(path).parent))
    module = types.ModuleType(Path(path).stem)
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    exec(compile(source, path, "exec"), module.__dict__)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise AttributeError(f"it defines no class '{name}'")
    return found


def _report(error: BaseException, path: str) -> dict[str, str]:
    """Type, message and the last line of the user's file an exception came through."""
    try:
        message = str(error)[:_MAX_DETAIL]
    except Exception:  # an exception of the user may be broken itself
        message = ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"line {lines[-1]}" if lines else ""
    return {"error": type(error).__name__, "detail": ", ".join(part for part in (message, where) if part)}


def _seed(seed: int) -> None:
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _turn(returned: Any) -> dict[str, Any]:
    if not isinstance(returned, tuple | list) or len(returned) != 3:
        raise TypeError(f"step returned {type(returned).__name__} instead of (message, reward, done)")
    message, reward, done = returned
    return {"message": message, "reward": float(reward), "done": bool(done)}


def _converse(environment_class: type[Any], path: str, channel: socket.socket) -> None:
    """Answer the requests of one conversation until the other side is gone."""
    environment: Any = None
    with channel.makefile("r", encoding="utf-8") as requests, channel.makefile("w", encoding="utf-8") as replies:
        for line in requests:
            request = json.loads(line)
            try:
                if "reset" in request:
                    _seed(request["seed"])
                    environment = environment_class()
                    reply = {"message": environment.reset(request["reset"], json.loads(request["row"]))}
                else:
                    reply = _turn(environment.step(request["step"]))
                text = json.dumps(reply)
            except Exception as error:
                text = json.dumps(_report(error, path))
            print(text, file=replies, flush=True)


class _Conversations:
    """The forked processes. Only their parent kills them, because only it knows that a number is still theirs."""

    def __init__(self, environment_class: type[Any], path: str, control: socket.socket) -> None:
        self.environment_class, self.path, self.control = environment_class, path, control
        self.alive: set[int] = set()

    def serve(self) -> None:
        """Fork and kill as asked, until the other side is gone."""
        while True:
            request, descriptors, _, _ = socket.recv_fds(self.control, REQUEST.size, 1)
            if not request:
                break
            operation, number = REQUEST.unpack(request)
            answer = self.fork(descriptors[0]) if operation == b"F" else self.kill(number)
            self.control.sendall(REPLY.pack(answer))
        for process in list(self.alive):
            self.kill(process)

    def fork(self, descriptor: int) -> int:
        """A process that talks over `descriptor`; minus the error number where there can be none."""
        try:
            process = os.fork()
        except OSError as error:
            os.close(descriptor)
            return -(error.errno or 1)
        if process:
            os.close(descriptor)
            self.alive.add(process)
            return process
        try:
            os.setpgid(0, 0)  # a kill reaches what the user's code starts
            self.control.close()
            _converse(self.environment_class, self.path, socket.socket(fileno=descriptor))
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def kill(self, process: int) -> int:
        """End a process and its children; returns its exit code, or minus the signal that ended it."""
        if process not in self.alive:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
        self.alive.discard(process)
        return os.waitstatus_to_exitcode(status)


def main(control: socket.socket) -> None:
    """Load the class, say so, serve."""
    settings = json.load(sys.stdin)
    try:
        environment_class = _load(settings["source"], settings["path"], settings["name"])
    except BaseException as error:
        control.sendall(json.dumps(_report(error, settings["path"])).encode() + b"\n")
        return
    gc.collect()
    gc.freeze()  # the forked processes share what is loaded now for longer
    control.sendall(b"{}\n")
    _Conversations(environment_class, settings["path"], control).serve()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
