"""The feed-forward network of encoder and decoder layers."""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ddetr_plugin.models.layers.token_linear import TokenLinear
from ddetr_plugin.ops import dropout, relu_dropout
from ddetr_plugin.registry import MODELS

__all__ = ['FeedForward']


@MODELS.register_module()
class FeedForward(BaseModule):
    """Two linear layers with a ReLU between them, dropout after each; no residual.

    The parameters are named as in mmcv's FFN, which it can replace and be replaced by (with
    `add_identity=False`). On a CPU this one is faster: mmcv's ReLU works in place on a view, for
    which autograd copies the gradient twice.

    Args:
        embed_dims: C.
        feedforward_channels: width between the layers.
        ffn_drop: probability of dropout.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a width is not positive, or the probability is not in [0, 1].
    """

    # What checkpoints of other implementations are compared with: there is no module for it.
    activation = 'relu'

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        ffn_drop: float = 0.0,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if min(embed_dims, feedforward_channels) < 1 or not 0 <= ffn_drop <= 1:
            raise ValueError(
                'embed_dims and feedforward_channels must be positive and ffn_drop in [0, 1], got '
                f'{embed_dims}, {feedforward_channels} and {ffn_drop}'
            )
        self.ffn_drop = ffn_drop
        self.layers = nn.Sequential(
            nn.Sequential(TokenLinear(embed_dims, feedforward_channels)),
            TokenLinear(feedforward_channels, embed_dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) of (..., C)."""
        hidden = self.layers[0](x)
        if self.training or torch.is_grad_enabled():
            hidden = relu_dropout(hidden, self.ffn_drop, self.training)
        else:
            hidden.relu_()
        return dropout(self.layers[1](hidden), self.ffn_drop, self.training)
