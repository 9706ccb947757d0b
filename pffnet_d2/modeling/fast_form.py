"""Forms of a network that compute the same, up to rounding, in less time on a CPU (docs/studies/inference-speed.md)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .backbone_lite import EfficientNetLite
from .roi_pooling import RowPooler


def lay_out(network: nn.Module) -> None:
    """Pool ROIs as :class:`RowPooler` does, and store the channels of a pixel side by side (channels_last).

    The weights keep their names and values, so that the network can be trained and saved as before.

    Args:
        network: on the CPU. It is changed.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if RowPooler.fits(child):
                setattr(module, name, RowPooler(child))
    network.to(memory_format=torch.channels_last)


def rearrange(network: nn.Module, *, autocast: bool = False) -> None:
    """For prediction: fold batch norms into the convolutions before them, compute the convolutions of an
    EfficientNet-Lite together with the activations after them and group norms as :class:`ChannelNorm` does, and
    :func:`lay_out` the network.

    It cannot be trained afterwards, and its weights are no longer those of its checkpoint. Group norms cannot be
    folded, because they take mean and variance from the image.

    Args:
        network: on the CPU, in evaluation mode. It is changed.
        autocast: the network will run in another precision than its weights'. Then activations and group norms stay as
            they are.
    """
    for module in list(network.modules()):
        if isinstance(module, EfficientNetLite):
            _simplify(module.net)
            if not autocast and ActivatedConv.available():
                _join_activations(module.net)
        elif isinstance(module, Conv2d) and isinstance(module.norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(module, Conv2d) and ChannelNorm.fits(module.norm) and not autocast:
            module.norm = ChannelNorm(module.norm)
    lay_out(network)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _simplify(net: nn.Module) -> None:
    """Fold the norms of timm's EfficientNet-Lite, and pad its maps inside the convolutions instead of copying them."""
    for module in list(net.modules()):
        # In timm's blocks each norm, which contains the activation, follows its convolution.
        for (_, conv), (name, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                setattr(module, name, norm.act)
        for name, conv in list(module.named_children()):
            if type(conv).__name__ == "Conv2dSame":
                setattr(module, name, _padded_evenly(conv))


class ChannelNorm(nn.Module):
    """A group norm whose groups are single channels, as narrow heads have it, from the sums of each channel and of its
    squares. For maps of ROIs with the channels of a pixel side by side, torch's own takes twice as long.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight[:, None, None], norm.bias[:, None, None], norm.eps

    @staticmethod
    def fits(norm: nn.Module) -> bool:
        return type(norm) is nn.GroupNorm and norm.num_groups == norm.num_channels

    def forward(self, x: Tensor) -> Tensor:
        """Norm maps (N, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        variance = x.square().mean((2, 3), keepdim=True) - mean.square()
        scale = (variance.clamp(min=0) + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias - mean * scale, x, scale)


class ActivatedConv(nn.Module):
    """A convolution and, if one follows, its ReLU6, which change each value while it is in the cache.

    The operator is what torch.compile makes of the two. It is not documented, so this class is used only where torch
    has it; autocast does not know it.
    """

    def __init__(self, conv: nn.Conv2d, relu6: bool) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        self.activation = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])

    @staticmethod
    def available() -> bool:
        return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")

    def forward(self, x: Tensor) -> Tensor:
        name, limits = self.activation
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, name, limits, "")


def _join_activations(net: nn.Module) -> None:
    for module in list(net.modules()):
        children = [*module.named_children(), ("", None)]
        for (name, conv), (after, activation) in itertools.pairwise(children):
            if type(conv) is nn.Conv2d:
                followed = isinstance(activation, nn.ReLU6)
                setattr(module, name, ActivatedConv(conv, followed))
                if followed:
                    setattr(module, after, nn.Identity())


def _padded_evenly(conv: Any) -> nn.Conv2d:
    """The same convolution of maps of even height and width, for a ``Conv2dSame`` of stride 2 with a bias.

    TensorFlow pads such maps by one pixel more below and to the right than above and to the left. A row and a column of
    zeros in front of the weights make both sides equal, so that no padded copy of the map is needed.
    """
    (side, _), (stride, _) = conv.kernel_size, conv.stride
    assert stride == 2
    assert side % 2
    even = nn.Conv2d(
        conv.in_channels, conv.out_channels, side + 1, stride=2, padding=(side - 1) // 2, groups=conv.groups
    )
    even.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 0, 1, 0)))
    even.bias = conv.bias
    return even
