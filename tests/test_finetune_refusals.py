"""Training that cannot begin leaves the wrapped network as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import scaled

import maskguided
from maskguided import ArgumentError, CheckpointError, finetune
from maskguided.adapters.pan_net import PAN
from maskguided.finetune import Recipe

pytest.importorskip("timm", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
pytest.importorskip("accelerate", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
QUICK = Recipe(steps=2, batch=2, crop=16, warmup=1)


def wrapped() -> maskguided.MaskGuided:
    return maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=4)), 2, merge="image", patch_size=8).train()


WRONG = {
    "optimizer": ({"recipe": replace(QUICK, optimizer="foo")}, "optimizer='foo': Optimizer foo not found"),
    "recipe": ({"recipe": {"steps": 2}}, r"recipe=\{'steps': 2\}; use a Recipe"),
    "workers": ({"workers": -1}, "workers=-1: processes that read images; use a whole number, 0 or more"),
    "half precision": ({"recipe": replace(QUICK, precision="fp16")}, "on a CPU there is no mixed precision of that"),
    "tensors": ({"lr": torch.zeros(999)}, r"lr=tensor\(.{,80}: use the path of a file or folder"),
    "a file of curves": ({"logs": __file__}, "a file; name a folder for TensorBoard"),
    "below a file of curves": ({"logs": f"{__file__}/a"}, "a file; name a folder for TensorBoard"),
    "below a file": ({"checkpoint": f"{__file__}/a/b.checkpoint"}, "its folder cannot be made"),
    "second derivatives": ({"recipe": replace(QUICK, optimizer="adahessian")}, "'adahessian': it needs second deriv"),
    "every": ({"every": 0}, "every=0: steps from one checkpoint to the next"),
}


@pytest.mark.parametrize(
    ("what", "stage"),
    [
        *((what, "refine") for what in (*WRONG, "half a checkpoint")),
        *(("damaged", stage) for stage in ("refine", "head")),
    ],
)
def test_what_is_refused_changes_nothing(what, stage, photos, tmp_path):
    fast, kept = wrapped(), tmp_path / "a.checkpoint"
    given, text, kind = {"recipe": QUICK, "checkpoint": kept}, "no checkpoint of a training run", CheckpointError
    if what == "half a checkpoint":
        finetune.fit(wrapped(), photos, "refine", QUICK, checkpoint=kept)
        torch.save({"run": torch.load(kept, weights_only=True)["run"]}, kept)
    elif what == "damaged":
        kept.write_bytes(b"PK")
    else:
        changes, text = WRONG[what]
        given, kind = {**given, **changes}, ArgumentError
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    with pytest.raises(kind, match=text):
        finetune.fit(fast, photos, stage, **given)
    assert fast.model is fast.unwrap()
    assert all(p.requires_grad for p in fast.model.parameters())
    assert all(module.training for module in fast.modules())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())


@pytest.mark.parametrize("coarse_tail", ["light", "copy"])
def test_a_head_is_not_trained_for_patches_that_refining_makes_worse(coarse_tail, photos):
    net = scaled(PAN(features=8, up_features=8, blocks=4))
    fast = maskguided.wrap(net, 2, merge="image", coarse_tail=coarse_tail, refine_tail="light", patch_size=8)
    with pytest.raises(ArgumentError, match=r"that tail is bilinear as yet, .* or train stage refine, first"):
        finetune.fit(fast, photos, "head", QUICK)
    finetune.fit(fast, photos, "refine", QUICK)
    finetune.fit(fast, photos, "head", QUICK)
    assert fast.scorer == "head"


def test_an_optimizer_is_named_by_text():
    with pytest.raises(ArgumentError, match="optimizer=None: a name that timm knows"):
        Recipe(optimizer=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": "a"}, {"steps": 1.5}, {"crop": 1.5}, {"warmup": -1}, {"seed": -1}, {"pool": "a"}, {"ema": None},
        {"clip": "a"}, {"clip": -1}, {"rate": "fast"}, {"options": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_of_other_values_is_refused_by_their_name(wrong):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}="):
        Recipe(**wrong)


@pytest.mark.parametrize("wrong", [{"hr": 5}, {"hr": [5]}, {"lr": 5}, {"checkpoint": 5}], ids=str)
def test_folders_are_paths(wrong, photos):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}=5: use the path"):
        finetune.fit(wrapped(), **{"hr": photos, **wrong})
