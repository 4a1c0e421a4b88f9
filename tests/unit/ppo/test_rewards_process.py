"""User code in its process: whatever it does, a call ends, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.process import CallFailed, UserProcess, UserSource

Make = Callable[[str], UserProcess]

HANDLER = "def handle(target, request):\n    return target(request)\n"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    started: list[UserProcess] = []
    handler = tmp_path / "handler.py"
    handler.write_text(HANDLER)

    def process(body: str) -> UserProcess:
        source = textwrap.dedent(body)
        started.append(UserProcess(UserSource(source, str(tmp_path / "code.py"), "call"), handler=handler))
        return started[-1]

    yield process
    for item in started:
        item.close()


def failure(process: UserProcess, request: Any = 0, *, seconds: float = 300.0) -> str:
    with pytest.raises(CallFailed) as raised:
        process.ask(request, seconds=seconds)
    return str(raised.value)


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that waits for whoever has to collect it; waits until it is so."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)


def test_results_come_back_and_printing_does_not_disturb_them(make: Make) -> None:
    process = make(
        """
        import os, sys
        def call(x):
            print("noise"); print("noise", file=sys.stderr); os.write(1, b"noise"); os.system("echo noise")
            return {"twice": 2 * x}
        """
    )
    assert [process.ask(n, seconds=300.0) for n in (1, 2)] == [{"twice": 2}, {"twice": 4}]


def test_stdin_is_empty_for_user_code_and_what_it_starts(make: Make) -> None:
    process = make(
        """
        import subprocess, sys
        def call(x):
            return [sys.stdin.read(), subprocess.run(["cat"], capture_output=True, text=True).stdout]
        """
    )
    assert process.ask(0, seconds=300.0) == ["", ""]
    assert process.ask(0, seconds=300.0) == ["", ""]


def test_modules_beside_our_files_do_not_hide_the_standard_library(make: Make) -> None:
    process = make(
        """
        import http.client, pathlib
        def call(x):
            return [http.client.HTTPConnection.__name__, pathlib.Path(__file__).name]
        """
    )
    assert process.ask(0, seconds=300.0) == ["HTTPConnection", "code.py"]


def test_user_code_imports_its_neighbours_and_may_use_signals_and_dataclasses(make: Make, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("FACTOR = 3\n")
    process = make(
        """
        import signal
        from dataclasses import dataclass
        from neighbour import FACTOR
        @dataclass
        class Point:
            x: int
        def call(x):
            signal.signal(signal.SIGALRM, lambda *_: None)
            return Point(x).x * FACTOR
        """
    )
    assert process.ask(2, seconds=300.0) == 6


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "raised ValueError: no, line 4"),
        ("sys.exit(3)", "raised SystemExit: 3, line 4"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt: line 4"),
        ("raise Broken", "raised Broken: line 4"),
        ("return call(x)", "raised RecursionError: maximum recursion depth exceeded, line 4"),
        ("return object()", "raised TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_exceptions_are_named_with_their_line_and_the_process_lives_on(make: Make, body: str, message: str) -> None:
    process = make(
        f"""import os, sys
class Broken(Exception): __str__ = None
def call(x):
    if x == 0: {body}
    return os.getpid()
"""
    )
    before = process.ask(1, seconds=300.0)
    assert failure(process) == message
    assert process.ask(1, seconds=300.0) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os._exit(3)", "process died: exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "process died: signal SIGSEGV"),
        ("os.write(2, b'first\\nlast words\\n'); os._exit(1)", "process died: exit code 1, last words"),
        ("os.closerange(3, 100); time.sleep(60)", "process died: closed its output"),
        # The child that stays behind holds our pipes open: the death is seen all the same.
        ("os.fork() or time.sleep(60); os._exit(7)", "process died: exit code 7"),
    ],
)
def test_a_death_is_described_and_the_next_call_gets_a_new_process(make: Make, body: str, message: str) -> None:
    process = make(
        f"""
        import os, signal, time
        def call(x):
            if x == 0: {body}
            return x
        """
    )
    assert failure(process) == message
    assert process.ask(5, seconds=300.0) == 5


def test_a_hang_is_killed_within_the_limit_even_if_requests_fill_the_pipe(make: Make) -> None:
    process = make(
        """
        import time
        def call(x):
            if x != 1: time.sleep(60)
            return x
        """
    )
    assert process.ask(1, seconds=300.0) == 1
    assert failure(process, "x" * 3_000_000, seconds=0.3) == "timed out: no result within 0.3 s"
    assert process.ask(1, seconds=300.0) == 1
    os.kill(process._process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    assert failure(process, "x" * 3_000_000, seconds=0.3) == "timed out: no result within 0.3 s"


def test_large_requests_and_replies_pass(make: Make) -> None:
    process = make("def call(x): return x + x")
    assert len(process.ask("x" * 3_000_000, seconds=300.0)) == 6_000_000


@pytest.mark.parametrize("stream", [1, 2])
def test_printing_without_end_is_a_hang_and_not_a_full_memory(make: Make, stream: int) -> None:
    process = make(
        f"""
        import os
        def call(x):
            while True: os.write({stream}, b"x" * 65536)
        """
    )
    assert failure(process, seconds=0.5) == "timed out: no result within 0.5 s"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("b'x' * (1 << 20) * 70", "unreadable reply: more than 64 MiB"),
        ("b'nonsense\\n'", "unreadable reply: "),
        ("b'[1]\\n'", "unreadable reply: neither result nor error"),
        ("b'[' * 100000 + b'\\n'", "unreadable reply: nested too deeply"),
    ],
)
def test_what_user_code_writes_into_our_pipe_is_refused(make: Make, written: str, message: str) -> None:
    process = make(
        f"""
        import os, stat, time
        def call(x):
            pipes = [fd for fd in range(3, 30) if is_pipe(fd)]
            for fd in pipes:
                try:
                    os.write(fd, b"")
                except OSError:
                    continue
                data = {written}
                while data: data = data[os.write(fd, data):]
                time.sleep(60)
        def is_pipe(fd):
            try:
                return stat.S_ISFIFO(os.fstat(fd).st_mode)
            except OSError:
                return False
        """
    )
    assert failure(process).startswith(message)


def test_what_user_code_started_dies_with_it(make: Make, tmp_path: Path) -> None:
    process = make(
        f"""
        import pathlib, subprocess, sys, time
        def call(x):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
            if x == 0: time.sleep(600)
        """
    )
    process.start(seconds=300.0)
    for end in (lambda: failure(process, 0, seconds=5.0), lambda: (process.ask(1, seconds=300.0), process.close())):
        end()
        assert ended(int((tmp_path / "pid").read_text()))


def test_a_fork_that_returns_twice_answers_once(make: Make) -> None:
    process = make(
        """
        import os
        def call(x):
            os.fork()
            return x
        """
    )
    assert [process.ask(n, seconds=300.0) for n in range(5)] == list(range(5))


def test_a_call_in_progress_ends_when_interrupted(make: Make) -> None:

    process = make("import time\ndef call(x): time.sleep(600)")
    process.start(seconds=300.0)
    threading.Timer(0.2, process.interrupt).start()
    assert failure(process, seconds=300.0) == "process died: signal SIGKILL"
    assert failure(process) == "interrupted"


@pytest.mark.parametrize("body", ["time.sleep(600)", "while True: pass"])
def test_a_driver_that_is_killed_leaves_no_process_behind(tmp_path: Path, body: str) -> None:
    (tmp_path / "handler.py").write_text(HANDLER)
    driver = f"""
import threading, time
from pathlib import Path
from camel_ray.ppo.rewards.process import UserProcess, UserSource
source = UserSource("import time\\ndef call(x):\\n    {body}\\n", "code.py", "call")
process = UserProcess(source, handler=Path({str(tmp_path / "handler.py")!r}))
process.start(seconds=60)
print(process._process.pid, flush=True)
process.ask(0, seconds=600)
"""
    running = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    running.kill()
    running.wait()
    running.stdout.close()
    assert ended(pid)


def test_an_interpreter_ends_though_nobody_closed_the_process(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(HANDLER)
    program = f"""
from pathlib import Path
from camel_ray.ppo.rewards.process import UserProcess, UserSource
process = UserProcess(UserSource("import threading, time\\ndef call(x): threading.Thread(target=time.sleep, args=(600,)"
                      ").start()", "c.py", "call"), handler=Path({str(tmp_path / "handler.py")!r}))
process.ask(0, seconds=60)
print(process._process.pid)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert ended(int(done.stdout))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_like_this", "raised ModuleNotFoundError: No module named 'nothing_like_this', line 1"),
        ("def call(:", "raised SyntaxError: invalid syntax (code.py, line 1)"),
        ("x = 1", "raised AttributeError: it defines no 'call' that can be called"),
        ("call = 1", "raised AttributeError: it defines no 'call' that can be called"),
        ("import sys; sys.exit()", "raised SystemExit: line 1"),
        ("import os; os._exit(9)", "process died: exit code 9"),
        ("import time; time.sleep(60)", "timed out: no result within 0.5 s"),
    ],
)
def test_a_file_that_cannot_be_loaded(make: Make, source: str, message: str) -> None:
    with pytest.raises(CallFailed) as raised:
        make(source).start(seconds=0.5 if "timed out" in message else 300.0)
    assert str(raised.value) == f"cannot be loaded: {message}"


def test_a_restarted_process_runs_the_source_the_run_began_with(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "code.py").write_text("import os\ndef call(x): return 'first' if x else os._exit(1)\n")
    source = UserSource.read("code.py", "call", base_dir=tmp_path, field="reward.function.path")
    (tmp_path / "code.py").write_text("def call(x): return 'second'\n")
    process = UserProcess(source, handler=tmp_path / "handler.py")
    failure(process)
    assert process.ask(1, seconds=300.0) == "first"
    process.close()


def test_files_that_cannot_be_read_are_named_with_their_field(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    for path, problem in (("none.py", "there is no file"), (".", "there is no file"), ("latin.py", "cannot be read")):
        with pytest.raises(RewardError, match=rf"^reward\.function\.path: .*{problem}.*; check the path$"):
            UserSource.read(path, "call", base_dir=tmp_path, field="reward.function.path")
