"""Convolutional layers of EpiBERT, channels-last: (batch, position, channel).

Channels-last activations go into the matrix products of a convolution as they are, and
a window is cut along its length without a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "NORM_EPS",
    "ConvBlock",
    "Convolution",
    "SoftmaxPool",
    "in_pieces",
    "max_pool",
]

NORM_EPS = 1e-5


class Convolution(nn.Conv1d):
    """Convolution that keeps the length, with weights named as in ``nn.Conv1d``."""

    def __init__(self, d_in: int, d_out: int, width: int) -> None:
        super().__init__(d_in, d_out, width, padding=(width - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, position, d_in) to (batch, position, d_out)."""
        if self.kernel_size[0] % 2 == 0:  # one more zero on the right, as TensorFlow
            x = F.pad(x, (0, 0, 0, 1))
        # An image one pixel high: conv1d itself would go over to channels-first.
        image = x.transpose(1, 2).unsqueeze(2)
        padding = (0, *self.padding)
        image = F.conv2d(image, self.weight.unsqueeze(2), self.bias, padding=padding)
        return image.squeeze(2).transpose(1, 2)


class ConvBlock(nn.Module):
    """Batch norm, tanh-approximated GELU and a convolution, in this order."""

    def __init__(self, d_in: int, d_out: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_in, eps=NORM_EPS, momentum=0.1)
        self.conv = Convolution(d_in, d_out, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, position, d_in) to (batch, position, d_out)."""
        normalized = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.conv(F.gelu(normalized, approximate="tanh"))


class SoftmaxPool(nn.Module):
    """Pool pairs of positions by a softmax over one learned logit per position.

    Unlike Enformer's attention pooling, all channels share the logit.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.logit = nn.Linear(n_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, position, channel) to (batch, position / 2, channel)."""
        left, right = x.unflatten(1, (-1, 2)).unbind(2)
        logit_left, logit_right = self.logit(x).unflatten(1, (-1, 2)).unbind(2)
        # A softmax over two positions is the sigmoid of their difference.
        return torch.lerp(right, left, torch.sigmoid(logit_left - logit_right))


def max_pool(x: Tensor, size: int) -> Tensor:
    """Map (batch, position, channel) to (batch, position / size, channel)."""
    return x.unflatten(1, (-1, size)).amax(2)


def in_pieces(
    layers: Callable[[Tensor], Tensor], x: Tensor, *, size: int, halo: int
) -> Tensor:
    """Apply layers to overlapping pieces along the positions, and join the results.

    The result is that of ``layers(x)`` if no output depends on inputs further than
    ``halo`` from its own. Zeros that a layer pads where a piece was cut reach only the
    outputs of the halo, which are dropped.

    Parameters
    ----------
    layers : callable
        Maps (batch, position, d_in) to (batch, position / r, d_out), for an r that
        divides ``size``, ``halo`` and the length of ``x``.
    x : torch.Tensor, shape (batch, position, d_in)
    size, halo : int
        Positions of a piece, and how many more it reads on either side.

    Returns
    -------
    torch.Tensor, shape (batch, position / r, d_out)
    """
    length = x.shape[1]
    pieces = []
    for start in range(0, length, size):
        first, last = max(0, start - halo), min(length, start + size + halo)
        piece = layers(x[:, first:last])
        r = (last - first) // piece.shape[1]
        stop = min(length, start + size)
        pieces.append(piece[:, (start - first) // r : (stop - first) // r])
    return torch.cat(pieces, dim=1)
