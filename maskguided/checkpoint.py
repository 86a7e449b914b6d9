"""Save and load what wrapping has added to a network: one small safetensors file with its settings inside."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapter import AUTOMATIC
from .errors import ArgumentError, CannotSplit, CheckpointError, warn
from .files import write_whole
from .guided import MaskGuided
from .head import BLURS
from .networks import load_network
from .probing.modules import first_weight, network_within, refuse_wrapped
from .values import as_path, check_keys
from .weights import HEAD_FORMAT, import_safetensors, load_into, read
from .wrapping import check_wrapped, wrap

STARTER_HEAD = Path(__file__).parent / "pretrained" / "starter_head.safetensors"
"""What makes the network that ships with the package mask-guided."""
_ADDED = ("head", "linear", "coarse_tail", "refine_tail", "context", "skip", "estimate")
_MODEL = "model."
_ESTIMATE = "estimate.weight"
_FITTED_FOR = ("patch_size", "halo", "exchange", "onward")
"""What patches cost and bring follows from these."""
_CHANGEABLE = ("keep", "min_gain_db", "patch_size", "halo", "scorer", "global_ops", "exchange", "coarse_on", "onward")
_ALWAYS = {"split_at", "merge", "head", "coarse_tail"}
_NETWORK_KEYS = {"class", "scale", "in_channels", "out_channels", "blocks", "fingerprint"}
"""What every file tells of its settings, and of the network that it was made for."""
_SETTINGS = {"adapter", "body", "refine_tail", "context", "skip", *_ALWAYS, *_CHANGEABLE}
"""All that a file may tell."""
_BEFORE = {"exchange": False, "refine_tail": "own"}
"""What a file means that does not say it: older than windows that exchange borders, or light refine tails."""


def save(fast: MaskGuided, path: str | Path) -> None:
    """Write what was added, what was trained, and the settings to `path` (.safetensors).

    Of the network's own weights only those are in it that stages refine, all, end or joint have changed.
    An existing file is replaced whole or not at all.

    Raises:
        CheckpointError: `path` does not end in .safetensors.
        MissingDependency: safetensors is not installed.
    """
    check_wrapped(fast)
    path = as_path(path, "path")
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path}: a maskguided file ends in .safetensors")
    added = {name: value for name, value in fast.state_dict().items() if name.partition(".")[0] in _ADDED}
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in {**added, **_trained(fast)}.items()}
    header = {
        "format": HEAD_FORMAT,
        "settings": json.dumps(settings_of(fast)),
        "base": json.dumps(_network_facts(fast)),
    }
    content = import_safetensors("safetensors.torch").save(tensors, metadata=header)
    write_whole(path, lambda beside: beside.write_bytes(content))  # whose error on a full disk is an OSError


@torch.inference_mode(False)
def load(path: str | Path, model: nn.Module, **changes: Any) -> MaskGuided:
    """Wrap `model` as the file says and load what `save` wrote.

    Args:
        path: what `save` wrote.
        model: the network it was made for.
        changes: settings to use instead of the file's: keep, min_gain_db, patch_size, halo, scorer, global_ops,
            exchange, coarse_on, onward. The others decide what the weights in the file are for. With keep alone, each
            image gets that share, whatever the file says.

    Raises:
        CheckpointError: no maskguided file, or made for another kind of network, or with settings that do not fit
            this one. Another training of the same network is a warning: fine-tuned weights are legitimate.
        ArgumentError: one of `changes` is out of its range.

    >>> import tempfile, torch
    >>> from maskguided.adapters.pan_net import PAN
    >>> net, x = PAN(features=8, up_features=8, blocks=4), torch.rand(1, 3, 20, 20)
    >>> fast = wrap(net, split_at=3, keep=0.25, scorer="head")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(fast, f"{folder}/pan.safetensors")
    ...     again = load(f"{folder}/pan.safetensors", net)
    >>> bool((again(x) == fast(x)).all())
    True
    """
    check_keys("settings", changes, sorted(_SETTINGS))
    for name in changes:
        if name not in _CHANGEABLE:
            raise ArgumentError(f"{name}={changes[name]!r}: {path} decides that; change {', '.join(_CHANGEABLE)}")
    refuse_wrapped(model)
    content = _saved(path)
    facts, saved = content.facts, {**_BEFORE, **content.settings}
    kind = type(network_within(model)).__qualname__
    _check_same(path, facts, {"class": kind})  # before an adapter says that it does not know it
    settings = {**saved, **({"min_gain_db": None} if "keep" in changes else {}), **changes}
    least = settings.pop("min_gain_db", None)
    fast = _wrapped(path, model, settings, saved, facts)
    other = [name for name in _FITTED_FOR if name in changes and getattr(fast, name) != _value(saved, name, fast)]
    if other and _ESTIMATE in content.tensors:
        warn(f"{path}: made for another {', '.join(other)}, so every image gets keep={fast.keep:g}")
        content = content._replace(tensors=without_estimate(content.tensors))
        least = changes.get("min_gain_db")
    _load_added(fast, content, path)
    with nullcontext() if "min_gain_db" in changes else _said_of(path, facts):
        fast.min_gain_db = least
    return fast


def _wrapped(
    path: str | Path, model: nn.Module, settings: Mapping[str, Any], saved: Mapping[str, Any], facts: Mapping[str, Any]
) -> MaskGuided:
    """`wrap` with `settings`; where those that were `saved` are refused too, that is said of the file."""
    try:
        return wrap(model, **settings)
    except (ArgumentError, CannotSplit) as error:
        if isinstance(error, CannotSplit) and not saved.get("body"):  # the file names no blocks: it is the network
            raise
        with _said_of(path, facts):
            wrap(model, **{name: value for name, value in saved.items() if name != "min_gain_db"})
        raise


@contextmanager
def _said_of(path: str | Path, facts: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (ArgumentError, CannotSplit) as error:
        made_for = f"made for a {facts['class']} of {facts['blocks']} blocks"
        raise CheckpointError(f"{path}: {made_for}, and its settings do not fit this one: {error}") from error


def _value(saved: Mapping[str, Any], name: str, fast: MaskGuided) -> Any:
    """A setting of a file as `fast` holds it (JSON knows no tuples); that of `fast` where an older file has none."""
    value = saved.get(name, getattr(fast, name))
    return tuple(value) if isinstance(value, list) else value


def starter(**changes: Any) -> MaskGuided:
    """The small x4 network that ships with the package, wrapped, calibrated and its head trained; changes as in `load`.

    For images in 0..1; pretrained/README.md in the package says what it was trained on and what it reaches.

    >>> starter().eval()(torch.rand(1, 3, 24, 40)).shape
    torch.Size([1, 3, 96, 160])
    """
    return load(STARTER_HEAD, load_network().model, **changes)


def load_onto(path: str | Path, fast: MaskGuided) -> None:
    """Load what `save` wrote into a network that is wrapped already, and keeps its own scorer, merge and keep.

    Raises:
        CheckpointError: as `load`, or it was made for another cut, merge, coarse tail or head.
    """
    content = _saved(path)
    check_settings(path, content.settings, fast)
    _load_added(fast, content._replace(tensors=without_estimate(content.tensors)), path)


def check_settings(path: str | Path, settings: Mapping[str, Any], fast: MaskGuided) -> None:
    """Refuse weights that were made with another cut, merge, tails or head than those of `fast`."""
    settings = {**_BEFORE, **settings}
    own = json.loads(json.dumps(settings_of(fast)))  # in which there are no tuples
    for what in ("split_at", "merge", "head", *(["coarse_tail", "refine_tail"] if fast.merge == "image" else [])):
        if settings[what] != own[what]:
            raise CheckpointError(f"{path}: made with {what}={settings[what]}; this network has {what}={own[what]}")


class Saved(NamedTuple):
    """What a file of `save` holds."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    facts: dict[str, Any]
    """What `_network_facts` said of the network that it was made for."""


def without_estimate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of a wrapped network, without what lets images decide for themselves."""
    return {name: value for name, value in tensors.items() if not name.startswith("estimate.")}


def _saved(path: str | Path) -> Saved:
    content = read(path)
    if content.metadata.get("format") != HEAD_FORMAT:
        raise CheckpointError(
            f"{path}: no file that maskguided.save wrote (its format is {content.metadata.get('format')})"
        )
    try:
        settings, facts = (json.loads(content.metadata[part]) for part in ("settings", "base"))
        whole = settings.keys() >= _ALWAYS and facts.keys() >= _NETWORK_KEYS
    except (KeyError, ValueError, AttributeError):  # not there, no JSON, no dict
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: damaged, or changed by another program: its settings are not in it")
    if unknown := settings.keys() - _SETTINGS:
        raise CheckpointError(
            f"{path}: made for a {facts['class']} of {facts['blocks']} blocks by another version of maskguided, "
            f"perhaps: the setting {min(unknown)!r} is not known"
        )
    for name, value in content.tensors.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: NaN or infinity in {name}, as after a training that diverged")
    return Saved(content.tensors, settings, facts)


def _load_added(fast: MaskGuided, content: Saved, path: str | Path) -> None:
    own, (tensors, _, facts) = _network_facts(fast), content
    _check_same(path, facts, {what: own[what] for what in ("class", "scale", "in_channels", "out_channels", "blocks")})
    trained = {name: value for name, value in tensors.items() if name.startswith(_MODEL)}
    if own["fingerprint"] != facts["fingerprint"] and not _holds_already(fast.model, trained):
        _say_other_weights(path, facts, own["layout"], fast, [name.removeprefix(_MODEL) for name in trained])
    fast.begin_added(tensors)
    parts_of = [name for name in _ADDED if name != "estimate" or _ESTIMATE in tensors]
    added = nn.ModuleDict({name: part for name in parts_of if (part := getattr(fast, name)) is not None})
    try:
        parts = upgraded({name: v for name, v in tensors.items() if name not in trained})
        load_into(added, parts, f"wrapped {own['class']}")
        if trained:
            fast.own_network()
            whole = {**fast.model.state_dict(), **{name.removeprefix(_MODEL): v for name, v in trained.items()}}
            load_into(fast.model, whole)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _say_other_weights(
    path: str | Path, facts: Mapping[str, Any], layout: str, fast: MaskGuided, trained: Sequence[str]
) -> None:
    """Warn that these are not the weights of a file's network, some of which are in it; refuse a deeper network."""
    what, half = "weights", first_weight(fast.model).dtype in (torch.float16, torch.bfloat16)
    fine = "fine if you have fine-tuned it since" + ", or rounded it to half precision" * half
    if facts.get("layout", layout) != layout:
        first, *_, last = fast.split.blocks
        if (further := _next_block(fast.given, last)) is not None:
            raise CheckpointError(
                f"{path}: made for a {facts['class']} of {facts['blocks']} blocks ({first} to {last}); this one goes "
                f"on with {further}"
            )
        what, fine = "weights in other layers", "fine if it is the same network in another form (re-parameterised)"
    elif trained:
        fine = (
            f"the network's {trained[0]} to {trained[-1]}, trained with them, are in it and replace yours in the wrap. "
            "If you have fine-tuned the network since, that is lost there, and the rest of it does not go with them: "
            "train again on this one" + ". It is fine if you have only rounded it to half precision" * half
        )
    warn(f"{path} was made for a {facts['class']} with other {what}; {fine}")


def _next_block(model: nn.Module, last: str) -> str | None:
    """The name of the module that follows `last` by its number and is like it, if there is one."""
    modules, numbered = dict(model.named_modules()), re.fullmatch(r"(.*?)(\d+)", last)
    name = numbered and f"{numbered[1]}{int(numbered[2]) + 1}"
    alike = name in modules and repr(modules[name]) == repr(modules[last])
    return name if alike else None


def _holds_already(model: nn.Module, trained: Mapping[str, Tensor]) -> bool:
    """Whether what a file's training has made of a network is in `model` already."""
    own = {_MODEL + name: value.cpu() for name, value in _tensors(model.state_dict()).items()}
    return bool(trained) and all(name in own and torch.equal(own[name], value) for name, value in trained.items())


def _check_same(path: str | Path, facts: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for what, value in own.items():
        if value != facts[what]:
            raise CheckpointError(f"{path}: made for a network with {what}={facts[what]}; this one has {what}={value}")


def upgraded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of a wrapped network, with what older files lack.

    Their score was linear in the energies themselves, and looked at the coarse image as well, which it no longer does;
    their estimate knew nothing of the patches around.
    """
    tensors = {name: v[: len(BLURS)] if name == "linear.weight" else v for name, v in tensors.items()}
    root = {"linear.root": torch.ones((), device="cpu")} if "linear.weight" in tensors else {}
    around = {"estimate.around": torch.zeros_like(tensors[_ESTIMATE])} if _ESTIMATE in tensors else {}
    return {**root, **around, **tensors}


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a state dict are tensors: quantised layers keep other values there, too."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def layout(weights: Mapping[str, Tensor]) -> str:
    """A hash of names and shapes."""
    return hashlib.sha256(
        repr(sorted((name, tuple(v.shape)) for name, v in _tensors(weights).items())).encode()
    ).hexdigest()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights, names and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(_tensors(weights).items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        value = torch.view_as_real(value) if value.is_complex() else value
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _trained(fast: MaskGuided) -> dict[str, Tensor]:
    """The network's weights that are not those of the network that was given."""
    given = fast.given.state_dict()
    own = {} if fast.model is fast.given else _tensors(fast.model.state_dict())
    return {_MODEL + name: v for name, v in own.items() if not torch.equal(v.cpu(), given[name].to("cpu", v.dtype))}


def settings_of(fast: MaskGuided) -> dict[str, Any]:
    """What `wrap` needs to build the same again."""
    return {
        "split_at": fast.split.split_at if len(fast.split.cuts) == 1 else fast.split.cuts,
        "adapter": fast.split.adapter or AUTOMATIC,
        "body": None if fast.split.adapter else fast.split.blocks,
        "keep": fast.keep,
        "patch_size": fast.patch_size,
        "halo": fast.halo,
        "merge": fast.merge,
        "onward": fast.onward,
        "scorer": fast.scorer,
        "coarse_tail": fast.coarse_tail_kind,
        "refine_tail": fast.split.refine_tail,
        "global_ops": fast.global_ops,
        "exchange": fast.exchange,
        "coarse_on": fast.coarse_on,
        "context": "zeros" if fast.context is None else "linear",
        "skip": "identity" if fast.skip is None else fast.skip.kind,
        "head": fast.head.settings,
        **({} if fast.min_gain_db is None else {"min_gain_db": fast.min_gain_db}),
    }


def _network_facts(fast: MaskGuided) -> dict[str, Any]:
    from . import __version__

    probe = fast.split.probe
    return {
        "version": __version__,
        "class": type(fast.model).__qualname__,
        "module": type(fast.model).__module__,
        "scale": probe.scale,
        "in_channels": probe.in_channels,
        "out_channels": probe.out_channels,
        "blocks": len(fast.split.blocks),
        "layout": layout(fast.given.state_dict()),
        "fingerprint": fingerprint(fast.given.state_dict()),
    }
