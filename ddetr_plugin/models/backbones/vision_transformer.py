"""A plain vision transformer (ViT, arXiv:2010.11929) for pictures of any size."""

import torch
import torch.nn.functional as nnf
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddetr_plugin.checkpoints.convert_vit import adopt_vit
from ddetr_plugin.models.layers.token_linear import TokenLinear
from ddetr_plugin.registry import MODELS

__all__ = ['ViTAttention', 'ViTBlock', 'VisionTransformer']


class ViTAttention(nn.Module):
    """Self-attention of all tokens with all (arXiv:2010.11929, Eq. 5 to 8).

    Args:
        embed_dims: C.
        num_heads: M, a divisor of C.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = TokenLinear(embed_dims, 3 * embed_dims)
        self.proj = TokenLinear(embed_dims, embed_dims)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, C) of (B, S, C)."""
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, S, 3, M, D)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, M, S, D)
        attended = nnf.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    """Attention and a feed-forward network with GELU, each after a norm (Eq. 2 and 3).

    Args:
        embed_dims: C.
        num_heads: M.
        feedforward_channels: width between the two linear layers.
        norm_eps: of the layer norms.
        drop_path: probability with which a picture skips each of the two parts in training
            (stochastic depth, arXiv:1603.09382).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        norm_eps: float,
        drop_path: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = ViTAttention(embed_dims, num_heads)
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module('fc1', TokenLinear(embed_dims, feedforward_channels))
        self.mlp.add_module('act', nn.GELU())
        self.mlp.add_module('fc2', TokenLinear(feedforward_channels, embed_dims))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, C) of (B, S, C)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


@MODELS.register_module()
class VisionTransformer(BaseModule):
    """ViT: a linear projection of flattened patches, learned positions, transformer blocks.

    Takes pictures (B, 3, H, W) of any size and returns one map, the last block's tokens after the
    final norm. A picture whose sides are no multiples of `patch_size` is padded with zeros at the
    right and the bottom: the map has ceil(H / patch_size) x ceil(W / patch_size) cells. The
    detector then takes the cells as spread over the unpadded H x W, so that a data preprocessor
    with `pad_size_divisor=patch_size` places boxes more exactly.

    The learned positions are resampled to the map bicubically, align_corners=False, the scale
    being the ratio of the sizes: as transformers' `interpolate_pos_encoding` and DINOv2 without
    offset do. For the size they were learned at they are what they are.

    A backbone is not told which part of a batch is padding. Tokens attend to it, and positions
    stretch over it: the features of a picture that is padded depend on the size of the batch, and
    so, somewhat, do its detections. A batch of one picture, or of pictures of one size, is padded
    to `pad_size_divisor` at most. (A mask in the attention would not undo it: the positions would
    stretch all the same.)

    The class token keeps its part in the attention, as in the training of the weights, with a
    position of its own; it is not in the map.

    Parameters are named as in timm, DeiT, DINO and MAE. `init_cfg=dict(type='Pretrained',
    checkpoint=...)` takes their files, and files and folders as transformers saves its ViTModel
    and ViTForImageClassification. Classification heads are left out; anything else that is left
    over, missing or of another shape is an error. See `ddetr_plugin.checkpoints.convert_vit`.

    Args:
        embed_dims: C; 192, 384, 768 and 1024 for ViT-Ti, S, B and L.
        num_layers: number of blocks; 12, and 24 for ViT-L.
        num_heads: M; C / 64 in all of these.
        feedforward_channels: 4 C in all of these.
        patch_size: side of a patch, in pixels.
        image_size: side of the square pictures that the positions are learned at, in pixels.
        norm_eps: of all layer norms; 1e-6 in timm's weights, 1e-12 in transformers'.
        drop_path: probability of stochastic depth in the last block; it grows linearly from 0 in
            the first.
        with_cp: keep only the blocks' inputs for the backward pass and compute the rest again
            (activation checkpointing, arXiv:1604.06174): less memory for a third more time.
        init_cfg: mmengine initialisation; by default matrices, positions and the class token are
            drawn from a normal distribution with standard deviation 0.02, cut at twice that.

    Raises:
        ValueError: a number is out of range, or sizes do not divide each other; the message names
            the argument.
        RuntimeError: at loading, if weights do not fit.
    """

    def __init__(
        self,
        embed_dims: int = 384,
        num_layers: int = 12,
        num_heads: int = 6,
        feedforward_channels: int = 1536,
        patch_size: int = 16,
        image_size: int = 224,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        with_cp: bool = False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        sizes = dict(
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_heads=num_heads,
            feedforward_channels=feedforward_channels,
            patch_size=patch_size,
            image_size=image_size,
        )
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f'{name} must be positive, got {size}')
        for number, divisor in (('embed_dims', 'num_heads'), ('image_size', 'patch_size')):
            if sizes[number] % sizes[divisor]:
                raise ValueError(
                    f'{number} must be a multiple of {divisor}, got {sizes[number]} and '
                    f'{sizes[divisor]}'
                )
        if not 0 <= drop_path < 1:
            raise ValueError(f'drop_path must be in [0, 1), got {drop_path}')
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.with_cp = with_cp
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module('proj', nn.Conv2d(3, embed_dims, patch_size, patch_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid_size**2, embed_dims))
        self.blocks = ModuleList(
            ViTBlock(
                embed_dims,
                num_heads,
                feedforward_channels,
                norm_eps,
                drop_path * layer / max(num_layers - 1, 1),
            )
            for layer in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices, positions and class token from N(0, 0.02) cut at 0.04; biases zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith('bias'):
                nn.init.zeros_(parameter)

    def forward(self, pictures: Tensor) -> tuple[Tensor]:
        """The map of pictures.

        Args:
            pictures: (B, 3, H, W), normalised.

        Returns:
            One map (B, C, ceil(H / patch_size), ceil(W / patch_size)).

        Raises:
            ValueError: `pictures` are not (B, 3, H, W), or empty.
        """
        if pictures.dim() != 4 or pictures.shape[1] != 3 or 0 in pictures.shape[2:]:
            raise ValueError(
                f'pictures must be (B, 3, H, W) with at least one pixel, got '
                f'{tuple(pictures.shape)}'
            )
        height, width = pictures.shape[2:]
        pad = (0, -width % self.patch_size, 0, -height % self.patch_size)
        patches = self.patch_embed(nnf.pad(pictures, pad) if any(pad) else pictures)
        rows, cols = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        # Before the concatenation: under autocast the tokens are of 16 bits, and from here on the
        # residual stream is not.
        tokens = tokens + self._positions(rows, cols)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat((cls_token.to(tokens.dtype), tokens), dim=1)  # (B, 1 + S, C)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        tokens = self.norm(tokens[:, 1:])
        return (tokens.transpose(1, 2).unflatten(2, (rows, cols)),)

    def _positions(self, rows: int, cols: int) -> Tensor:
        """(1, rows * cols, C), resampled from the grid they were learned on."""
        positions = self.pos_embed[:, 1:]
        if rows == cols == self.grid_size:
            return positions
        # One matrix per axis: interpolate's backward pass is not deterministic on a GPU.
        positions = positions.unflatten(1, (self.grid_size, self.grid_size))
        down, across = (self._resampling(size).to(positions.dtype) for size in (rows, cols))
        with torch.autocast(positions.device.type, enabled=False):
            positions = torch.einsum('yi,bijc->byjc', down, positions)
            return torch.einsum('xj,byjc->byxc', across, positions).flatten(1, 2)

    def _resampling(self, size: int) -> Tensor:
        """(size, grid_size) float32: what each learned row adds to each wanted one."""
        unit = torch.eye(self.grid_size, device=self.pos_embed.device)
        resampled = nnf.interpolate(
            unit[None, :, :, None], size=(size, 1), mode='bicubic', align_corners=False
        )
        return resampled[0, :, :, 0].T

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Loaded by itself, takes the files that the class's docstring names."""
        if not prefix:
            adopt_vit(state_dict, self)
        super()._load_from_state_dict(state_dict, prefix, *args)
