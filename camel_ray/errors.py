"""Every exception this package raises on purpose, and what a caller should do about it.

    CamelError                    exit code
    ├── PermanentError               10      running it again changes nothing: the user has to act
    │   ├── SpecError                11      the YAML is wrong
    │   ├── DataError                12      a data set is missing, empty or of the wrong shape
    │   ├── ModelError               13      a model, tokenizer or checkpoint cannot be used
    │   └── RewardError              14      a reward function or model misbehaved and its policy is `fail`
    └── RetryableError               20      the same attempt may succeed later
        ├── StorageUnavailable       21      storage cannot be read or written (full disk, network)
        ├── WorkerLost               22      a process that belonged to the run is gone
        ├── OutOfMemory              23      host or device memory ran out
        ├── Preempted                24      the machine was taken away; never uses the retry budget
        └── Stopped                  25      somebody asked it to stop; what it had done is saved

A message is one sentence: what is wrong, where (file, line, field), and what to do. The exit code of a stage tells
the operator the class, so the numbers are part of the contract. 130 is Ctrl-C; any other exception is a bug and exits
with 1.
"""

from __future__ import annotations

from typing import ClassVar


class CamelError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what a process that ends with it returns."""

    exit_code: ClassVar[int] = 1


class PermanentError(CamelError):
    """Running it again changes nothing: the user has to act."""

    exit_code: ClassVar[int] = 10


class SpecError(PermanentError):
    """The YAML is wrong. `problems` holds one sentence each; the message joins them with newlines."""

    exit_code: ClassVar[int] = 11

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__("\n".join(problems))


class DataError(PermanentError):
    """A data set is missing, empty or of the wrong shape."""

    exit_code: ClassVar[int] = 12


class ModelError(PermanentError):
    """A model, tokenizer or checkpoint cannot be used."""

    exit_code: ClassVar[int] = 13


class RewardError(PermanentError):
    """A reward function or reward model misbehaved and its failure policy is `fail`."""

    exit_code: ClassVar[int] = 14


class RetryableError(CamelError):
    """The same attempt may succeed later."""

    exit_code: ClassVar[int] = 20


class StorageUnavailable(RetryableError):
    """Storage cannot be read or written: a full disk, a missing mount, a network fault."""

    exit_code: ClassVar[int] = 21


class WorkerLost(RetryableError):
    """A process that belonged to the run is gone."""

    exit_code: ClassVar[int] = 22


class OutOfMemory(RetryableError):
    """Host or device memory ran out."""

    exit_code: ClassVar[int] = 23


class Preempted(RetryableError):
    """The machine was taken away; a retry is free."""

    exit_code: ClassVar[int] = 24


class Stopped(RetryableError):
    """Somebody asked the stage to stop (suspend, cancel, SIGTERM); the next attempt continues where it ended."""

    exit_code: ClassVar[int] = 25
