"""Small random-weight instances of the single-image networks of basicsr 1.4.2 and spandrel 0.4.2.

Every entry keeps the structure of the real network (kinds of blocks, shifted windows, attention, ways of enlarging)
at a small width and depth, so that the whole table runs in ten minutes on one processor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from maskguided.integrations.basicsr_plugin import import_basicsr


@dataclass(frozen=True)
class Architecture:
    """One row: `build()` makes the network, default weights, in training mode; `gain` is what suits `seeded`."""

    name: str
    build: Callable[[], nn.Module]
    scale: int
    note: str = ""
    gain: float = 0.8


# Shares of a residual, attention sharpness and the like: they must be far from zero, or whole branches vanish.
_SCALES = ("gamma", "beta", "scale", "sigma", "ga1", "alpha", "temperature", "temp")
# The range of these is part of the formula: an exponential's argument, an exponent.
_KEPT = ("logit_scale", "density_k")


@torch.no_grad()
def seeded(model: nn.Module, seed: int = 0, gain: float = 0.8) -> nn.Module:
    """Give `model` reproducible weights under which every layer matters, and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        word = name.rpartition(".")[2]
        # What cannot be trained is a fixed filter or a colour shift, not a weight.
        if not parameter.requires_grad or word in _KEPT:
            continue
        if word.endswith(_SCALES):
            value = 0.5 + 0.5 * torch.rand(parameter.shape, generator=generator)
        elif bool((parameter == 1).all()):  # the weight of a normalisation, whatever its class is called
            value = 0.8 + 0.4 * torch.rand(parameter.shape, generator=generator)
        elif parameter.dim() > 1:
            value = torch.randn(parameter.shape, generator=generator) * gain / parameter[0].numel() ** 0.5
        else:
            value = torch.rand(parameter.shape, generator=generator) * 0.2
        parameter.copy_(value)
    return model.eval()


def make_basicsr(file: str, kind: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of basicsr.archs, as ("edsr_arch", "EDSR", ...)."""
    model: nn.Module = getattr(import_basicsr(f"basicsr.archs.{file}"), kind)(**arguments)
    return model


def make_spandrel(where: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of spandrel.architectures by its folder, file and class, as "HAT.HAT.HAT"."""
    folder, file, kind = where.split(".")
    module = importlib.import_module(f"spandrel.architectures.{folder}.__arch.{file}")
    model: nn.Module = getattr(module, kind)(**arguments)
    return model


# The parameters before the slash have names that networks use for their own arguments.
def _basicsr(
    name: str, file: str, kind: str, scale: int, /, note: str = "", gain: float = 0.8, **arguments: Any
) -> Architecture:
    return Architecture(f"basicsr/{name}", partial(make_basicsr, file, kind, arguments), scale, note, gain)


def _spandrel(
    name: str, where: str, scale: int, /, note: str = "", gain: float = 0.8, **arguments: Any
) -> Architecture:
    return Architecture(f"spandrel/{name}", partial(make_spandrel, where, arguments), scale, note, gain)


_RGB: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3}
_FOUR = [2, 2, 2, 2]
_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": _FOUR, "num_heads": [4, 4, 4, 4], "window_size": 8, "mlp_ratio": 2}
_DENSE: dict[str, Any] = {"num_feat": 16, "num_block": 4, "num_grow_ch": 8}

BASICSR: tuple[Architecture, ...] = (
    _basicsr("EDSR x4", "edsr_arch", "EDSR", 4, **_RGB, num_feat=16, num_block=6, upscale=4),
    _basicsr("EDSR x3", "edsr_arch", "EDSR", 3, **_RGB, num_feat=16, num_block=6, upscale=3, res_scale=0.5),
    _basicsr("RCAN x4", "rcan_arch", "RCAN", 4, **_RGB, num_feat=16, num_group=4, num_block=2, squeeze_factor=4),
    _basicsr("MSRResNet x4", "srresnet_arch", "MSRResNet", 4, **_RGB, num_feat=16, num_block=6, upscale=4),
    _basicsr("MSRResNet x3", "srresnet_arch", "MSRResNet", 3, **_RGB, num_feat=16, num_block=6, upscale=3),
    _basicsr("RRDBNet x4", "rrdbnet_arch", "RRDBNet", 4, **_RGB, scale=4, **_DENSE),
    _basicsr("RRDBNet x2", "rrdbnet_arch", "RRDBNet", 2, "pixel-unshuffle by 2", **_RGB, scale=2, **_DENSE),
    _basicsr("RRDBNet x1", "rrdbnet_arch", "RRDBNet", 1, "pixel-unshuffle by 4", **_RGB, scale=1, **_DENSE),
    _basicsr("SRVGGNetCompact x4", "srvgg_arch", "SRVGGNetCompact", 4, **_RGB, num_feat=16, num_conv=8, upscale=4),
    _basicsr("SwinIR x4", "swinir_arch", "SwinIR", 4, "pixelshuffle", **_SWIN, upscale=4, upsampler="pixelshuffle"),
    _basicsr("SwinIR light x2", "swinir_arch", "SwinIR", 2, **_SWIN, upscale=2, upsampler="pixelshuffledirect"),
    _basicsr("SwinIR real x4", "swinir_arch", "SwinIR", 4, **_SWIN, upscale=4, upsampler="nearest+conv"),
    _basicsr("SwinIR x1", "swinir_arch", "SwinIR", 1, "denoising", **_SWIN, upscale=1, upsampler=""),
    _basicsr(
        "ECBSR x4", "ecbsr_arch", "ECBSR", 4, gain=0.25,
        **_RGB, num_block=6, num_channel=16, with_idt=False, act_type="prelu", scale=4,
    ),
    _basicsr(
        "ECBSR x2", "ecbsr_arch", "ECBSR", 2, "identity branch", gain=0.2,
        **_RGB, num_block=6, num_channel=16, with_idt=True, act_type="prelu", scale=2,
    ),
    _basicsr("RIDNet x1", "ridnet_arch", "RIDNet", 1, "denoising", in_channels=3, mid_channels=16, out_channels=3),
)  # fmt: skip

_ATD: dict[str, Any] = {**_SWIN, "category_size": 64, "num_tokens": 16, "reducted_dim": 4}
# Any narrower, and the norms in the layers that compute the position bias see one channel and make it constant.
# In CRAFT, whose released networks are that narrow, it is so anyway.
_DAT: dict[str, Any] = {"embed_dim": 96, "depth": _FOUR, "num_heads": [2, 2, 2, 2], "split_size": [8, 16]}
_GRL: dict[str, Any] = {
    "embed_dim": 24, "depths": _FOUR, "num_heads_window": _FOUR, "num_heads_stripe": _FOUR, "window_size": 8,
    "mlp_ratio": 2, "anchor_window_down_factor": 2,
}  # fmt: skip
_HAT: dict[str, Any] = {**_SWIN, "window_size": 16, "squeeze_factor": 6, "num_feat": 16}
_FDAT: dict[str, Any] = {"embed_dim": 24, "num_groups": 4, "depth_per_group": 2, "mid_dim": 16}
_MOESR: dict[str, Any] = {"dim": 16, "n_blocks": 4, "n_block": 2, "upsample_dim": 16}
_PLK: dict[str, Any] = {"dim": 16, "n_blocks": 6}
_SEEMORE: dict[str, Any] = {"num_experts": 3, "num_layers": 4, "embedding_dim": 16}
_ESRGAN: dict[str, Any] = {"num_filters": 16, "num_blocks": 4}

SPANDREL_SR: tuple[Architecture, ...] = (
    _spandrel("ATD x4", "ATD.atd_arch.ATD", 4, "pixelshuffle", **_ATD, upscale=4, upsampler="pixelshuffle"),
    _spandrel(
        "ATD light x2", "ATD.atd_arch.ATD", 2, "pixelshuffledirect", **_ATD, upscale=2, upsampler="pixelshuffledirect"
    ),
    _spandrel("ATD real x4", "ATD.atd_arch.ATD", 4, "nearest+conv", **_ATD, upscale=4, upsampler="nearest+conv"),
    _spandrel("CRAFT x4", "CRAFT.CRAFT.CRAFT", 4, embed_dim=24, depths=_FOUR, num_heads=[4, 4, 4, 4], upscale=4),
    _spandrel("CRAFT x2", "CRAFT.CRAFT.CRAFT", 2, embed_dim=24, depths=_FOUR, num_heads=[4, 4, 4, 4], upscale=2),
    _spandrel("Compact x4", "Compact.SRVGG.SRVGGNetCompact", 4, num_feat=16, num_conv=8, upscale=4),
    _spandrel("Compact x2", "Compact.SRVGG.SRVGGNetCompact", 2, num_feat=16, num_conv=8, upscale=2),
    _spandrel("DAT x4", "DAT.DAT.DAT", 4, "pixelshuffle", **_DAT, upscale=4, expansion_factor=2.0),
    _spandrel(
        "DAT light x2", "DAT.DAT.DAT", 2, "pixelshuffledirect, 3conv",
        **_DAT, upscale=2, expansion_factor=2.0, resi_connection="3conv", upsampler="pixelshuffledirect",
    ),
    _spandrel("DCTLSA x4", "DCTLSA.dctlsa.DCTLSA", 4, nf=20, upscale=4),
    _spandrel("DITN x4", "DITN.DITN_Real.DITN_Real", 4, dim=16, ITL_blocks=2, SAL_blocks=2, UFONE_blocks=4, upscale=4),
    _spandrel("DITN x2", "DITN.DITN_Real.DITN_Real", 2, dim=16, ITL_blocks=4, SAL_blocks=4, UFONE_blocks=1, upscale=2),
    _spandrel("DRCT x4", "DRCT.drct_arch.DRCT", 4, **_SWIN, gc=8, upscale=4, upsampler="pixelshuffle"),
    _spandrel("ESRGAN x4", "ESRGAN.RRDB.RRDBNet", 4, **_ESRGAN, scale=4),
    _spandrel("ESRGAN x2", "ESRGAN.RRDB.RRDBNet", 2, "one enlargement", **_ESRGAN, scale=2),
    _spandrel("ESRGAN x3", "ESRGAN.RRDB.RRDBNet", 3, "one enlargement by 3", **_ESRGAN, scale=3),
    _spandrel("ESRGAN x8", "ESRGAN.RRDB.RRDBNet", 8, **_ESRGAN, scale=8),
    _spandrel("ESRGAN+ x4", "ESRGAN.RRDB.RRDBNet", 4, "plus: 1x1 shortcuts in the blocks", **_ESRGAN, plus=True),
    _spandrel("ESRGAN unshuffle x2", "ESRGAN.RRDB.RRDBNet", 2, "pixel-unshuffle by 2", **_ESRGAN, in_nc=12, scale=4,
              shuffle_factor=2),
    _spandrel("ESRGAN unshuffle x1", "ESRGAN.RRDB.RRDBNet", 1, "pixel-unshuffle by 4", **_ESRGAN, in_nc=48, scale=4,
              shuffle_factor=4),
    _spandrel("ESRGAN pixel_shuffle x4", "ESRGAN.RRDB.RRDBNet", 4, **_ESRGAN, upsampler="pixel_shuffle"),
    _spandrel("FDAT x4", "FDAT.fdat.FDAT", 4, "transpose+conv", **_FDAT, scale=4),
    _spandrel("FDAT direct x2", "FDAT.fdat.FDAT", 2, **_FDAT, scale=2, upsampler_type="pixelshuffledirect"),
    _spandrel("FDAT pixelshuffle x3", "FDAT.fdat.FDAT", 3, **_FDAT, scale=3, upsampler_type="pixelshuffle"),
    _spandrel("FDAT nearest+conv x4", "FDAT.fdat.FDAT", 4, **_FDAT, scale=4, upsampler_type="nearest+conv"),
    _spandrel("FDAT lda x2", "FDAT.fdat.FDAT", 2, **_FDAT, scale=2, upsampler_type="lda"),
    _spandrel("FDAT pa_up x4", "FDAT.fdat.FDAT", 4, **_FDAT, scale=4, upsampler_type="pa_up"),
    _spandrel("FDAT unshuffle x2", "FDAT.fdat.FDAT", 2, "pixel-unshuffle", **_FDAT, scale=2, unshuffle_mod=True),
    _spandrel("GRL x4", "GRL.grl.GRL", 4, "pixelshuffle, stripe groups", **_GRL, upscale=4, upsampler="pixelshuffle",
              stripe_size=[8, None], stripe_groups=[None, 4], stripe_shift=True, local_connection=True),
    _spandrel("GRL light x2", "GRL.grl.GRL", 2, "pixelshuffledirect", **_GRL, upscale=2, upsampler="pixelshuffledirect",
              stripe_size=[16, 16], stripe_shift=True),
    _spandrel("GRL real x4", "GRL.grl.GRL", 4, "nearest+conv", **_GRL, upscale=4, upsampler="nearest+conv",
              stripe_size=[16, 16], stripe_shift=True, conv_type="1conv"),
    _spandrel("HAT x4", "HAT.HAT.HAT", 4, **_HAT, upscale=4, compress_ratio=3, conv_scale=0.5),
    _spandrel("HAT-S x2", "HAT.HAT.HAT", 2, "stronger compression", **_HAT, upscale=2, compress_ratio=8),
    _spandrel("IPT x2", "IPT.ipt.IPT", 2, "accepts patch_size only, here 64x64", patch_size=64, patch_dim=4, n_feats=4,
              num_heads=4, num_layers=4, rgb_range=1, scale=[2]),
    _spandrel("IPT x4", "IPT.ipt.IPT", 4, "accepts patch_size only, here 64x64", patch_size=64, patch_dim=4, n_feats=4,
              num_heads=4, num_layers=4, rgb_range=1, scale=[4]),
    _spandrel("MMRealSR x4", "MMRealSR.mmrealsr_arch.MMRRDBNet_test", 4, "returns (image, degrees)", **_RGB, **_DENSE,
              num_feats=[16, 16, 16, 16], num_blocks=[1, 1, 1, 1], scale=4),
    _spandrel("MoESR x4", "MoESR.MoESR.MoESR", 4, "pixelshuffledirect", **_MOESR, scale=4),
    _spandrel("MoESR pixelshuffle x2", "MoESR.MoESR.MoESR", 2, **_MOESR, scale=2, upsampler="pixelshuffle"),
    _spandrel("MoESR nearest+conv x4", "MoESR.MoESR.MoESR", 4, **_MOESR, scale=4, upsampler="nearest+conv"),
    _spandrel("MoESR dysample x3", "MoESR.MoESR.MoESR", 3, **_MOESR, scale=3, upsampler="dysample"),
    _spandrel("MoSR x4", "MoSR.mosr_arch.MoSR", 4, "pixel shuffle", dim=16, n_block=6, upscale=4, upsampler="ps"),
    _spandrel("MoSR gps x2", "MoSR.mosr_arch.MoSR", 2, dim=16, n_block=6, upscale=2, upsampler="gps"),
    _spandrel("MoSR dys x3", "MoSR.mosr_arch.MoSR", 3, "dysample", dim=16, n_block=6, upscale=3, upsampler="dys"),
    _spandrel("OmniSR x4", "OmniSR.OmniSR.OmniSR", 4, num_feat=16, block_num=1, res_num=5, up_scale=4),
    _spandrel("OmniSR x2", "OmniSR.OmniSR.OmniSR", 2, num_feat=16, block_num=1, res_num=4, up_scale=2),
    _spandrel("PLKSR x4", "PLKSR.PLKSR.PLKSR", 4, "attention", **_PLK, ccm_type="DCCM", upscaling_factor=4),
    _spandrel("PLKSR tiny x2", "PLKSR.PLKSR.PLKSR", 2, "no attention", **_PLK, ccm_type="CCM", kernel_size=13,
              upscaling_factor=2, use_ea=False),
    _spandrel("PLKSR sparse x3", "PLKSR.PLKSR.PLKSR", 3, "sparse kernels", **_PLK, ccm_type="ICCM", lk_type="SparsePLK",
              upscaling_factor=3, with_idt=True),
    _spandrel("PLKSR stripes x4", "PLKSR.PLKSR.PLKSR", 4, "stripe kernels", **_PLK, lk_type="RectSparsePLK"),
    _spandrel("RealPLKSR x4", "PLKSR.RealPLKSR.RealPLKSR", 4, **_PLK, upscaling_factor=4),
    _spandrel("RealPLKSR dysample x2", "PLKSR.RealPLKSR.RealPLKSR", 2, **_PLK, upscaling_factor=2, dysample=True),
    _spandrel("RealPLKSR layer_norm x4", "PLKSR.RealPLKSR.RealPLKSR", 4, **_PLK, layer_norm=True, use_ea=False),
    _spandrel("RCAN x4", "RCAN.rcan_arch.RCAN", 4, "scales its input in place", n_resgroups=4, n_resblocks=2,
              n_feats=16, reduction=4, scale=4),
    _spandrel("RCAN unshuffle x2", "RCAN.rcan_arch.RCAN", 2, "pixel-unshuffle, in place", n_resgroups=4, n_resblocks=2,
              n_feats=16, reduction=4, scale=2, unshuffle_mod=True, norm=False),
    _spandrel("RGT x4", "RGT.rgt.RGT", 4, **_DAT, mlp_ratio=2.0, upscale=4),
    _spandrel("RGT x2", "RGT.rgt.RGT", 2, "3conv", **_DAT, mlp_ratio=2.0, upscale=2, resi_connection="3conv"),
    _spandrel("RealCUGAN x2", "RealCUGAN.upcunet_v3.UpCunet2x", 2, "fixed width"),
    _spandrel("RealCUGAN x3", "RealCUGAN.upcunet_v3.UpCunet3x", 3, "fixed width"),
    _spandrel("RealCUGAN x4", "RealCUGAN.upcunet_v3.UpCunet4x", 4, "fixed width"),
    _spandrel("RealCUGAN pro x2", "RealCUGAN.upcunet_v3.UpCunet2x", 2, "fixed width, other range", pro=True),
    _spandrel("RealCUGAN fast x2", "RealCUGAN.upcunet_v3.UpCunet2x_fast", 2, "fixed width, pixel-unshuffle"),
    _spandrel("SAFMN x4", "SAFMN.safmn.SAFMN", 4, dim=16, n_blocks=6, upscaling_factor=4),
    _spandrel("SAFMN x2", "SAFMN.safmn.SAFMN", 2, dim=16, n_blocks=6, upscaling_factor=2),
    _spandrel("SPAN x4", "SPAN.span.SPAN", 4, **_RGB, feature_channels=16, upscale=4),
    _spandrel("SPAN no norm x2", "SPAN.span.SPAN", 2, **_RGB, feature_channels=16, upscale=2, norm=False),
    _spandrel("SeemoRe x4", "SeemoRe.seemore_arch.SeemoRe", 4, "one expert of 3 per image", **_SEEMORE, scale=4),
    _spandrel("SeemoRe x2", "SeemoRe.seemore_arch.SeemoRe", 2, "two experts of 3 per image", **_SEEMORE, scale=2,
              topk=2, lr_space="exp", recursive=1, use_shuffle=False),
    _spandrel("SwiftSRGAN x4", "SwiftSRGAN.SwiftSRGAN.Generator", 4, num_channels=16, num_blocks=6, upscale_factor=4),
    _spandrel("SwiftSRGAN x2", "SwiftSRGAN.SwiftSRGAN.Generator", 2, num_channels=16, num_blocks=6, upscale_factor=2),
    _spandrel("Swin2SR x4", "Swin2SR.Swin2SR.Swin2SR", 4, **_SWIN, upscale=4, upsampler="pixelshuffle"),
    _spandrel("Swin2SR aux x4", "Swin2SR.Swin2SR.Swin2SR", 4, **_SWIN, upscale=4, upsampler="pixelshuffle_aux"),
    _spandrel("Swin2SR hf x2", "Swin2SR.Swin2SR.Swin2SR", 2, "returns three images, the base first", **_SWIN, upscale=2,
              upsampler="pixelshuffle_hf"),
    _spandrel("Swin2SR light x2", "Swin2SR.Swin2SR.Swin2SR", 2, **_SWIN, upscale=2, upsampler="pixelshuffledirect"),
    _spandrel("Swin2SR real x4", "Swin2SR.Swin2SR.Swin2SR", 4, **_SWIN, upscale=4, upsampler="nearest+conv"),
    _spandrel("SwinIR x4", "SwinIR.SwinIR.SwinIR", 4, **_SWIN, upscale=4, upsampler="pixelshuffle"),
    _spandrel("SwinIR large real x4", "SwinIR.SwinIR.SwinIR", 4, "3conv", **_SWIN, upscale=4, upsampler="nearest+conv",
              resi_connection="3conv"),
    _spandrel("SwinIR light x2", "SwinIR.SwinIR.SwinIR", 2, **_SWIN, upscale=2, upsampler="pixelshuffledirect"),
    _spandrel("SwinIR unshuffle x2", "SwinIR.SwinIR.SwinIR", 2, "pixel-unshuffle by 2", **_SWIN, upscale=4,
              upsampler="pixelshuffle", start_unshuffle=2),
)  # fmt: skip

_UNET: dict[str, Any] = {"in_nc": 3, "out_nc": 3, "nc": [8, 16, 32, 64], "nb": 2}

SPANDREL_RESTORE: tuple[Architecture, ...] = (
    _spandrel("ATD x1", "ATD.atd_arch.ATD", 1, **_ATD, upscale=1, upsampler=""),
    _spandrel("GRL x1", "GRL.grl.GRL", 1, **_GRL, upscale=1, stripe_size=[16, 16], stripe_shift=True),
    _spandrel("Swin2SR x1", "Swin2SR.Swin2SR.Swin2SR", 1, **_SWIN, upscale=1, upsampler=""),
    _spandrel("SwinIR x1", "SwinIR.SwinIR.SwinIR", 1, **_SWIN, upscale=1, upsampler=""),
    _spandrel("Compact x1", "Compact.SRVGG.SRVGGNetCompact", 1, num_feat=16, num_conv=8, upscale=1),
    _spandrel("MoESR x1", "MoESR.MoESR.MoESR", 1, **_MOESR, scale=1, upsampler="conv"),
    _spandrel("SAFMNBCIE x1", "SAFMNBCIE.safmn_bcie.SAFMN_BCIE", 1, dim=16, n_blocks=4, num_layers=2),
    _spandrel("IPT x1", "IPT.ipt.IPT", 1, "accepts patch_size only, here 64x64", patch_size=64, patch_dim=4, n_feats=4,
              num_heads=4, num_layers=4, rgb_range=1, scale=[1]),
    _spandrel("DRUNet x1", "DRUNet.network_unet.DRUNet", 1, "without the noise map", **_UNET),
    _spandrel("DnCNN x1", "DnCNN.network_dncnn.DnCNN", 1, in_nc=3, out_nc=3, nc=16, nb=9),
    _spandrel("DnCNN no norm x1", "DnCNN.network_dncnn.DnCNN", 1, in_nc=3, out_nc=3, nc=16, nb=9, act_mode="R"),
    _spandrel("FBCNN x1", "FBCNN.FBCNN.FBCNN", 1, "returns (image, quality)", **{**_UNET, "nc": [8, 16, 32, 512]}),
    _spandrel("FFTformer x1", "FFTformer.fftformer_arch.FFTformer", 1, dim=16, num_blocks=[1, 1, 2],
              num_refinement_blocks=2),
    _spandrel("HVICIDNet x1", "HVICIDNet.cidnet.CIDNet", 1, channels=[12, 12, 24, 48]),
    _spandrel("KBNet-S x1", "KBNet.kbnet_s.KBNet_s", 1, width=8, middle_blk_num=4, enc_blk_nums=[1, 1, 1, 1],
              dec_blk_nums=[1, 1, 1, 1]),
    _spandrel("KBNet-L x1", "KBNet.kbnet_l.KBNet_l", 1, dim=24, num_blocks=[1, 1, 1, 2], num_refinement_blocks=2),
    _spandrel("MixDehazeNet x1", "MixDehazeNet.MixDehazeNet.MixDehazeNet", 1, embed_dims=[8, 16, 32, 16, 8]),
    _spandrel("NAFNet x1", "NAFNet.NAFNet_arch.NAFNet", 1, width=8, middle_blk_num=4, enc_blk_nums=[1, 1, 1, 1],
              dec_blk_nums=[1, 1, 1, 1]),
    _spandrel("RetinexFormer x1", "RetinexFormer.retinexformer_arch.RetinexFormer", 1, n_feat=16, stage=2,
              num_blocks=[1, 1, 1]),
    _spandrel("SCUNet x1", "SCUNet.SCUNet.SCUNet", 1, config=[2, 2, 2, 2, 2, 2, 2], dim=64),
    _spandrel("Uformer x1", "Uformer.Uformer.Uformer", 1, "square images only", img_size=64, embed_dim=8, win_size=4,
              modulator=True),
)  # fmt: skip

ARCHITECTURES: tuple[Architecture, ...] = BASICSR + SPANDREL_SR + SPANDREL_RESTORE

_VIDEO = "takes a sequence of frames"
_FACE = "restores one aligned face, not images in general"
_JUDGE = "returns no image but scores or features"
_MAP = "takes the noise level as a fourth channel of its input; the variant without it is in the table"

NOT_TRIED: dict[str, str] = {
    "basicsr/BasicVSR": _VIDEO,
    "basicsr/IconVSR": _VIDEO,
    "basicsr/BasicVSRPlusPlus": _VIDEO,
    "basicsr/EDVR": _VIDEO,
    "basicsr/DUF": _VIDEO,
    "basicsr/TOFlow": _VIDEO,
    "basicsr/SpyNet": "takes two frames and returns the motion between them",
    "basicsr/DFDNet": "restores one aligned face, and needs its landmarks and a dictionary of faces",
    "basicsr/HiFaceGAN": _FACE,
    "basicsr/StyleGAN2Generator": "makes images out of noise",
    "basicsr/StyleGAN2Discriminator": _JUDGE,
    "basicsr/VGGStyleDiscriminator": _JUDGE,
    "basicsr/UNetDiscriminatorSN": _JUDGE,
    "basicsr/HiFaceGANDiscriminator": _JUDGE,
    "basicsr/VGGFeatureExtractor": _JUDGE,
    "basicsr/InceptionV3": _JUDGE,
    "spandrel/GFPGAN": _FACE,
    "spandrel/RestoreFormer": _FACE,
    "spandrel/AuraSR": "enlarges tiles of 64x64 only, with fresh noise in every run",
    "spandrel/LaMa": "takes a mask besides the image",
    "spandrel/FDAT dysample": "asks for pinned memory in every run, which fails without a GPU",
    "spandrel/MMRealSR x2, x1": "fail in spandrel: a branch built for the pixel-unshuffled image is given the image",
    "spandrel/FDnCNN": _MAP,
    "spandrel/DRUNet with noise map": _MAP,
}
