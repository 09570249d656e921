"""What layers of the encoder and of the decoder have in common."""

from collections.abc import Callable

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddetr_plugin.ops import dropout_add

__all__ = ['TransformerLayer', 'build_norms']


def xavier_uniform_matrices(module: nn.Module) -> None:
    """Draws every parameter of two or more dimensions from Xavier's uniform distribution."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def build_norms(norm: dict, embed_dims: int, count: int) -> ModuleList:
    """`count` norms of `embed_dims` channels, of a config such as `dict(type='LN')`."""
    return ModuleList(build_norm_layer(norm, embed_dims)[1] for _ in range(count))


class TransformerLayer(BaseModule):
    """Sublayers one after another, each with dropout, residual and norm (arXiv:1706.03762, 3.1).

    A subclass builds the sublayers, then `norms` with `build_norms`, and gives its computation to
    `run`. Optimisers count parameters in the order in which they were built.

    Args:
        dropout: after each attention; a feed-forward network has its own.
        with_cp: keep only the layer's inputs for the backward pass and compute the rest again
            (activation checkpointing, arXiv:1604.06174): less memory for a third more time.
        init_cfg: mmengine initialisation.
    """

    def __init__(
        self,
        dropout: float,
        with_cp: bool,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.dropout = dropout
        self.with_cp = with_cp

    def init_weights(self) -> None:
        """All matrices Xavier uniform, then what the parts define for themselves."""
        if not self.is_init:  # else the parts would not be asked again
            xavier_uniform_matrices(self)
        super().init_weights()

    def run(self, compute: Callable[..., Tensor], *arguments) -> Tensor:
        """``compute(*arguments)``, with activation checkpointing where that is asked for."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(compute, *arguments, use_reentrant=False)
        return compute(*arguments)

    def add_and_norm(self, index: int, attention: Tensor, residual: Tensor) -> Tensor:
        """The norm of this index, of the residual and what dropout leaves of the attention."""
        return self.norms[index](dropout_add(attention, residual, self.dropout, self.training))
