"""Depthwise causal convolution with its activation, as it stands before the scan in a Mamba block."""

import torch.nn.functional as F
from torch import Tensor

from fxcompress.kernels._register import widen
from fxcompress.kernels.activations import activation_named


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Every channel with its own filter, over the present and the w - 1 positions before it (zero before the first).

        y[b, c, t] = act(bias[c] + sum_j weight[c, j] x[b, c, t - w + 1 + j])

    x (b, c, l), weight (c, w), bias (c) -> y (b, c, l), in the dtype of x. ``activation`` "" is none.

    Gu and Dao, Mamba, arXiv 2312.00752, section 3.4.
    """
    dtype, (channels, width) = x.dtype, weight.shape
    x, weight, bias = widen(x, weight, bias)
    y = F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=channels)
    if activation:
        y = activation_named(activation)(y)
    return y.to(dtype).contiguous()
