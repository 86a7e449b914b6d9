"""Write a wrapped network as ONNX or as a torch.export program, and check the file against the network itself.

The number k of refined patches follows from keep and the image's size alone, so the whole of it, choosing patches
included, is one graph without control flow. Such a graph is for one size: that of the example.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ArgumentError, ExportError, MissingDependency, first_line
from .files import write_whole
from .guided import MaskGuided
from .optional import optional, torch_since
from .probing.modules import first_weight
from .probing.untouched import in_eval_mode
from .values import as_path
from .wrapping import check_wrapped

_ONNX = ("ONNX (a .pt2 file needs nothing more)", "maskguided[export]")
_WILD = 1e4
TOLERANCE = 1e-3
"""Largest difference from the network, in its range, that a checked file may have: a quarter of a step of 8 bits.

onnxruntime rounds more coarsely than torch: the whole of PAN differs by 1.2e-4 on a CPU with AVX-512."""


@torch.no_grad()
def export(fast: MaskGuided, path: str | Path, example: Tensor) -> float:
    """Write `fast` at its present keep to `path`, for images of the size of `example`, and check it there.

    Args:
        fast: a wrapped network, on the CPU.
        path: ends in .onnx (needs `pip install 'maskguided[export]'`) or .pt2 (torch.export; read with
            torch.export.load). An existing file is replaced whole or not at all.
        example: (B, C, H, W), a photograph rather than noise, which drives some trained networks (PAN) far out of their
            range: the difference that is allowed grows with that, and beyond some range nothing can be checked.

    Returns:
        The largest difference between what the file makes of `example` and what `fast` makes of it.

    Raises:
        ArgumentError: another suffix, no tensor, or a network that is not on the CPU.
        ExportError: the network cannot be exported, or its file not be run, or that gives another image, by more than
            1e-3 of the range.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed, or torch is older than 2.6, for .onnx.

    >>> import tempfile
    >>> from maskguided import wrap
    >>> from maskguided.adapters.pan_net import PAN
    >>> fast = wrap(PAN(features=8, up_features=8, blocks=4), keep=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(fast, f"{folder}/net.pt2", torch.rand(1, 3, 32, 48)) < 1e-5
    True
    """
    check_wrapped(fast)
    path = as_path(path, "path")
    write, run = _format_of(path)
    _check_exportable(fast, example)
    with in_eval_mode(fast):
        expected = fast(example)
        reach = float(expected.abs().max())
        if not reach <= _WILD * max(1.0, float(example.abs().max())):
            raise ExportError(
                f"the network's own image reaches {reach:.2g} on this example, so a file cannot be checked on it"
            )
        program = _program(fast, example)
    found: list[float] = []

    def write_and_check(beside: Path) -> None:
        write(program, beside)
        found.append(float((run(beside, example) - expected).abs().max()))
        if not found[0] <= TOLERANCE * max(1.0, reach):
            raise ExportError(f"{path}: gives another image than the network, by {found[0]:.2g}; it was not written")

    write_whole(path, write_and_check)
    return found[0]


def _format_of(path: Path) -> tuple[Callable[[Any, Path], None], Callable[[Path, Tensor], Tensor]]:
    """How a file of this name is written, and run; refused where that needs what is not installed."""
    match path.suffix.lower():
        case ".pt2":
            return _write_pt2, _run_pt2
        case ".onnx":
            if not torch_since(2, 6):
                raise MissingDependency(f"{_ONNX[0]} needs torch 2.6 or newer; this is {torch.__version__}")
            for package in ("onnx", "onnxscript", "onnxruntime"):
                optional(package, *_ONNX)
            return _write_onnx, _run_onnx
    raise ArgumentError(f"{path}: a file ends in .onnx or .pt2")


def _check_exportable(fast: MaskGuided, example: object) -> None:
    if not isinstance(example, Tensor):
        raise ArgumentError(f"export: example of type {type(example).__name__}; give an image, a tensor (B, C, H, W)")
    if example.device.type != "cpu" or first_weight(fast).device.type != "cpu":
        raise ArgumentError("export: move the network and the example to the CPU first")
    if fast.min_gain_db is not None:
        raise ArgumentError(
            f"export: a file refines as many patches of every image; set keep (it is {fast.keep:g} on average), which "
            "ends min_gain_db"
        )


class _AsExported(nn.Module):
    """`fast` for the exporter."""

    def __init__(self, fast: MaskGuided) -> None:
        super().__init__()
        self.fast = fast

    def forward(self, x: Tensor) -> Tensor:
        with _Settled():
            image: Tensor = self.fast(x)
        return image


class _Settled(TorchFunctionMode):
    """Within it `weight.data` is what it has become: what a forward makes of its weights (SPAN) it has made before.

    The exporter sees only what goes through torch's functions, and `.data` does not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.data:
            return args[0].detach() if len(args) == 1 else None
        return func(*args, **(kwargs or {}))


def _program(fast: MaskGuided, example: Tensor) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(_AsExported(fast), (example,), strict=False)
    except Exception as error:  # whatever a foreign network raises there
        raise ExportError(
            f"{type(fast.model).__name__} cannot be exported at {tuple(example.shape)}: {first_line(error)}"
        ) from error


def _write_pt2(program: Any, path: Path) -> None:
    whole = io.BytesIO()  # on a full disk torch ends the process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())


def _run_pt2(path: Path, example: Tensor) -> Tensor:
    stored = io.BytesIO(path.read_bytes())  # by a name in capitals torch would load it with a complaint
    image: Tensor = torch.export.load(stored).module()(example)
    return image


def _write_onnx(program: Any, path: Path) -> None:
    opset = optional("onnxscript", *_ONNX).opset18

    def sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        """torch.sort in ONNX: TopK of everything, which puts the first of equal values first, as a stable sort does."""
        count = opset.Gather(opset.Shape(x), opset.Constant(value_ints=[dim]))
        return opset.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.sort.stable: sort}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                (),
                path,
                dynamo=True,
                input_names=["input"],
                output_names=["output"],
                verbose=False,
                optimize=False,
                external_data=False,
                custom_translation_table=table,
            )
    except OSError:
        raise
    except Exception as error:  # an operation of a foreign network that ONNX does not know
        raise ExportError(f"this network cannot be written as ONNX: {first_line(error.__cause__ or error)}") from error


def _run_onnx(path: Path, example: Tensor) -> Tensor:
    try:
        session = onnx_session(path)
        (image,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    except MissingDependency:
        raise
    except Exception as error:  # an operation that it has not in this dtype; its errors have no class in common
        raise ExportError(f"onnxruntime cannot run this network in {example.dtype}: {first_line(error)}") from error
    return torch.from_numpy(image)


def onnx_session(path: str | Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; 0 threads: as many as it likes."""
    runtime = optional("onnxruntime", *_ONNX)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: a line of warning for each scalar that it does not fold is of no use
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
