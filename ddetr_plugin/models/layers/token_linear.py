"""A linear layer for many tokens."""

import platform

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

__all__ = ['TokenLinear']

# With fewer rows a convolution's own preparations cost more than it gains.
MIN_ROWS = 2048
IS_X86 = platform.machine().lower() in ('x86_64', 'amd64')


class TokenLinear(nn.Linear):
    """`nn.Linear`, computed as a convolution with a 1 x 1 kernel where that is faster.

    On x86, torch multiplies float32 matrices by MKL, after it has copied the bias into every row
    of the result; convolutions go to oneDNN, which adds the bias on the way and, on processors of
    other makers than MKL's, is faster by a fifth. Both are views of the same memory. The result
    differs by the rounding of sums.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., out_features) of (..., in_features)."""
        if not self._is_faster_as_convolution(input):
            return super().forward(input)
        rows = input.reshape(1, 1, -1, self.in_features)
        # (1, C, 1, rows), each row's channels side by side in memory: "channels last".
        mixed = nnf.conv2d(rows.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
        return mixed.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)

    def _is_faster_as_convolution(self, input: Tensor) -> bool:
        return (
            # A compiler has its own choice of products, and would compile twice for the sizes.
            not torch.compiler.is_compiling()
            and IS_X86
            and input.device.type == 'cpu'
            and input.dtype == self.weight.dtype == torch.float32
            and input.shape[-1:] == (self.in_features,)  # else torch's own error
            and input.numel() >= MIN_ROWS * self.in_features
            and not torch.is_autocast_enabled('cpu')
            and torch.backends.mkldnn.is_available()
        )
