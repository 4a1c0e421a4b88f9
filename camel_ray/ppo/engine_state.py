"""Training state by parameter name, whatever pieces the ranks hold it in; to and from safetensors.

Both optimizers of the engine keep flat fp32 tensors; a `Fragment` says which part of a parameter lies where in them.
AdamW's moments and the average of the weights are flat tensors of the same form. So one gather and one scatter serve
all of them, and a checkpoint of one number of ranks and ZeRO stage loads into any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from camel_ray.api.training import OptimizerSpec
from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors

STATE_FILE = "engine.json"
_FORMAT = 1
_GATHER_BYTES = 1 << 28
"""Bytes of parameters that are whole on a rank at one time while saving."""
_FILE_BYTES = 1 << 30
"""Bytes after which a rank starts another file: the host memory that saving needs."""

Judge = Callable[[Tensor], bool]
"""Told the gradient's norm before clipping, says whether to take the step. The answer is the same on all ranks."""


@dataclass(frozen=True)
class Fragment:
    """The part of a parameter that a rank holds, in elements."""

    flat: int
    """Which of the rank's flat tensors holds it."""
    start: int
    """Where it starts there."""
    offset: int
    """Where it starts in the parameter."""
    numel: int


class Optimization(Protocol):
    """A module, its gradients and its AdamW on one rank: `FlatOptimizer` or `ZeroOptimizer`."""

    module: nn.Module
    device: torch.device
    optimizer: torch.optim.AdamW
    """Over `masters`, with moments from the start."""
    masters: list[Tensor]
    """fp32 weights of this rank, flat."""
    fragments: dict[str, Fragment]
    """By name of a trained parameter. Names without a part on this rank are missing."""
    sharded: bool
    """Whether ranks hold different fragments."""

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass. A collective under ZeRO-3."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch to those of this update. A collective under ZeRO."""

    def step(self, judge: Judge) -> None:
        """Take the sum over ranks, ask `judge` about its norm, clip and step if it agrees, and clear the gradients.

        A step that is not taken leaves parameters, masters and moments as they are, to the bit.
        """

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it, these parameters are whole on every rank. A collective under ZeRO-3."""

    def publish(self) -> None:
        """Make the masters, which a checkpoint has changed, the parameters of the forward pass."""


def new_adamw(groups: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW as one kernel per tensor, on a CPU as on a GPU."""
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, fused=True)


def start_moments(optimizer: torch.optim.AdamW, masters: Iterable[Tensor]) -> None:
    """Make the state that AdamW would make in its first step, so that it can be read and set at any time."""
    for master in masters:
        optimizer.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            "exp_avg": torch.zeros_like(master, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
        }


def by_weight_decay(module: nn.Module) -> list[tuple[bool, list[tuple[str, nn.Parameter]]]]:
    """Trained parameters in groups with and without weight decay.

    Only matrices decay: biases and norms would be pulled to 0 for no reason.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        (decays, [(n, p) for n, p in trained if (len(whole_shape(p)) >= 2) is decays]) for decays in (True, False)
    ]
    return [(decays, group) for decays, group in groups if group]


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter, also where ZeRO-3 left only a shard of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def in_buckets(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in order, in lists whose sizes sum to at most `most`; a larger one is alone."""
    bucket: list[str] = []
    total = 0
    for name, size in sizes.items():
        if bucket and total + size > most:
            yield bucket
            bucket, total = [], 0
        bucket.append(name)
        total += size
    if bucket:
        yield bucket


@torch.no_grad()
def gather(state: Optimization, flats: Sequence[Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Whole fp32 tensors of parameters, from flat tensors of the form of the masters. Every rank has to call it.

    Without sharding they are views of `flats`.
    """
    parameters = dict(state.module.named_parameters())
    shapes = {name: whole_shape(parameters[name]) for name in names}
    if not state.sharded:
        return {name: _piece(flats, state.fragments[name]).view(shape) for name, shape in shapes.items()}
    whole = torch.zeros(sum(shape.numel() for shape in shapes.values()), device=state.device)
    result, start = {}, 0
    for name, shape in shapes.items():
        result[name] = whole[start : start + shape.numel()].view(shape)
        fragment = state.fragments.get(name)
        if fragment is not None:
            whole[start + fragment.offset :][: fragment.numel].copy_(_piece(flats, fragment))
        start += shape.numel()
    dist.all_reduce(whole)
    return result


def save_state(
    state: Optimization, directory: Path, *, updates: int, ema: Sequence[Tensor] | None, rank: int, world: int
) -> None:
    """Write weights (fp32), moments, average and buffers below `directory`. Every rank has to call it.

    The trained parameters are dealt out to the ranks, which gather them together and write at the same time. Files are
    `weights-*.safetensors` and so on, with the module's own names.
    """
    parameters = {name: p for name, p in state.module.named_parameters() if p.requires_grad}
    kinds = _kinds(state, ema)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    owners = {name: index % world for index, name in enumerate(parameters)}
    sizes = {name: whole_shape(p).numel() * 4 for name, p in parameters.items()}
    for kind, flats in kinds.items():
        writer = _Writer(directory, kind, rank)
        for names in in_buckets(sizes, _GATHER_BYTES):
            for name, value in gather(state, flats, names).items():
                if owners[name] == rank:
                    writer.add(name, value)
        writer.close()
    if rank == 0:
        writer = _Writer(directory, "buffers", rank)
        for name, buffer in persistent_buffers(state.module).items():
            writer.add(name, buffer)
        writer.close()
        about = {"format": _FORMAT, "updates": updates, "kinds": list(kinds)}
        with disk_errors(directory):
            (directory / STATE_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")


@torch.no_grad()
def load_state(state: Optimization, directory: Path, *, ema: Sequence[Tensor] | None) -> int:
    """Read what `save_state` wrote, on any number of ranks and at any ZeRO stage. Returns the number of updates.

    Raises ModelError if it is damaged or of another model.
    """
    try:
        about = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        updates, kinds = int(about["updates"]), set(about["kinds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory / STATE_FILE} is not readable ({error}); use an older checkpoint") from error
    shapes = {name: list(whole_shape(p)) for name, p in state.module.named_parameters() if p.requires_grad}
    wanted = _kinds(state, ema)
    if set(wanted) != kinds or about.get("format") != _FORMAT:
        raise ModelError(
            f"{directory} holds {', '.join(sorted(kinds))} instead of {', '.join(wanted)}; set `emaDecay` back to what "
            "it was, or start again without the checkpoint"
        )
    for kind, flats in wanted.items():
        with _Reader(directory, kind) as reader:
            reader.check(shapes)
            for name, fragment in state.fragments.items():
                _piece(flats, fragment).copy_(reader.piece(name, fragment))
    buffers = persistent_buffers(state.module)
    with _Reader(directory, "buffers") as reader:
        reader.check({name: list(buffer.shape) for name, buffer in buffers.items()})
        for name, buffer in buffers.items():
            buffer.copy_(reader.piece(name, Fragment(0, 0, 0, buffer.numel())).view(buffer.shape))
    for master in state.masters:
        state.optimizer.state[master]["step"].fill_(updates)
    state.publish()
    return updates


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of the module's state."""
    return {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, child in module.named_modules()
        for name, buffer in child.named_buffers(recurse=False)
        if name not in child._non_persistent_buffers_set
    }


def _kinds(state: Optimization, ema: Sequence[Tensor] | None) -> dict[str, Sequence[Tensor]]:
    moments = [state.optimizer.state[master] for master in state.masters]
    kinds: dict[str, Sequence[Tensor]] = {
        "weights": state.masters,
        "exp_avg": [entry["exp_avg"] for entry in moments],
        "exp_avg_sq": [entry["exp_avg_sq"] for entry in moments],
    }
    return kinds if ema is None else {**kinds, "ema": ema}


def _piece(flats: Sequence[Tensor], fragment: Fragment) -> Tensor:
    return flats[fragment.flat].detach()[fragment.start : fragment.start + fragment.numel]


class _Writer:
    """Collects tensors on the host and writes a file whenever there are enough of them."""

    def __init__(self, directory: Path, kind: str, rank: int) -> None:
        self._directory = directory
        self._stem = f"{kind}-{rank:05d}"
        self._files = 0
        self._bytes = 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value.detach().to("cpu", copy=True)
        self._bytes += value.nbytes
        if self._bytes >= _FILE_BYTES:
            self.close()

    def close(self) -> None:
        if not self._tensors:
            return
        path = self._directory / f"{self._stem}-{self._files:03d}.safetensors"
        with disk_errors(path):
            try:
                save_file(self._tensors, path)
            except SafetensorError as error:
                if "No space left" in str(error):
                    raise OSError(28, "No space left on device", str(path)) from error
                raise
        self._files, self._bytes, self._tensors = self._files + 1, 0, {}


class _Reader:
    """All files of one kind, open at once; tensors and parts of them by name."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._where = directory / f"{kind}-*.safetensors"
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for path in sorted(directory.glob(self._where.name)):
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                self._files.update(dict.fromkeys(file.keys(), file))
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise ModelError(f"{path} is corrupt ({error}); use an older checkpoint") from error

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, shapes: Mapping[str, list[int]]) -> None:
        """Raise ModelError unless the files hold just these tensors."""
        differing = sorted(self._files.keys() ^ shapes.keys()) or [
            name for name, shape in shapes.items() if self._files[name].get_slice(name).get_shape() != shape
        ]
        if differing:
            raise ModelError(
                f"{self._where} are of another model: {differing[0]} is missing, unknown or of another shape; set the "
                "model back to what it was, or start again without the checkpoint"
            )

    def piece(self, name: str, fragment: Fragment) -> Tensor:
        """A fragment of a tensor, flat; of a large tensor only the rows that hold it are read."""
        tensor = self._files[name].get_slice(name)
        shape = tensor.get_shape()
        if not shape:
            scalar: Tensor = self._files[name].get_tensor(name)
            return scalar.view(1)
        row = max(1, torch.Size(shape[1:]).numel())
        first = fragment.offset // row
        rows: Tensor = tensor[first : -(-(fragment.offset + fragment.numel) // row)]
        return rows.reshape(-1)[fragment.offset - first * row :][: fragment.numel]
