"""The record that describes a batch of flattened multi-scale features, and what follows from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ['FeatureLevels', 'flatten_levels']

Size = tuple[int, int]


class FeatureLevels(NamedTuple):
    """Where the tokens of each feature level lie, and which of them are padding.

    B pictures, L levels, S tokens in all. Made by `from_images`; every number that the host
    needs is also a Python int, so nothing is ever read back from the device.

    Attributes:
        sizes: L pairs (H_l, W_l) of ints, in cells.
        spatial_shapes: (L, 2) int64, the same as a tensor.
        level_start_index: (L,) int64, index in S of each level's first token.
        valid_sizes: (B, L, 2) float32, (width, height) of the unpadded part in cells.
        valid_ratios: (B, L, 2) float32, (width, height) of the unpadded part over W_l, H_l; 0..1.
        padding_mask: (B, S) bool, True on padding; None if nothing is padded.
    """

    sizes: tuple[Size, ...]
    spatial_shapes: Tensor
    level_start_index: Tensor
    valid_sizes: Tensor
    valid_ratios: Tensor
    padding_mask: Tensor | None

    @classmethod
    def from_images(
        cls,
        sizes: Sequence[Sequence[int]],
        batch_shape: Size,
        image_shapes: Sequence[Sequence[int]],
        device: torch.device,
    ) -> 'FeatureLevels':
        """Describes features of a batch of pictures padded at the right and the bottom.

        Args:
            sizes: L pairs (H_l, W_l) of the feature maps, in cells.
            batch_shape: (H, W) of the padded batch, in pixels.
            image_shapes: B pairs (h, w) of the pictures before padding, in pixels.
            device: where the tensors are wanted.

        Raises:
            ValueError: there is no picture or no level; a picture is empty or larger than the
                batch.
        """
        if not len(sizes) or not len(image_shapes):
            raise ValueError(
                f'a batch needs at least one level and one picture, got {len(sizes)} and '
                f'{len(image_shapes)}'
            )
        levels = tuple((int(h), int(w)) for h, w in sizes)
        for i, (h, w) in enumerate(image_shapes):
            if not (0 < h <= batch_shape[0] and 0 < w <= batch_shape[1]):
                raise ValueError(
                    f'img_shape of picture {i} is {(h, w)}, but must be at least 1 x 1 and at most '
                    f'the batch of {tuple(batch_shape)}; is the data preprocessor the one that '
                    'padded this batch?'
                )
        valid = np.array(
            [
                [
                    (_valid_cells(w, batch_shape[1], cols), _valid_cells(h, batch_shape[0], rows))
                    for rows, cols in levels
                ]
                for h, w in image_shapes
            ],
            dtype=np.float32,
        )  # (B, L, 2)
        cells = np.array([(cols, rows) for rows, cols in levels], dtype=np.float32)
        starts = np.cumsum([0] + [h * w for h, w in levels[:-1]])
        padded = bool((valid < cells).any())
        # A copy to a GPU that may block makes the host wait for all that was queued before.
        arrays = (valid, valid / cells, np.array(levels, dtype=np.int64), starts.astype(np.int64))
        valid_sizes, valid_ratios, spatial_shapes, level_start_index = (
            torch.from_numpy(array).to(device, non_blocking=True) for array in arrays
        )
        return cls(
            sizes=levels,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
            valid_sizes=valid_sizes,
            valid_ratios=valid_ratios,
            padding_mask=_padding_mask(levels, valid_sizes) if padded else None,
        )

    @property
    def tokens_per_level(self) -> tuple[int, ...]:
        """L ints, H_l * W_l; their sum is S."""
        return tuple(h * w for h, w in self.sizes)

    def tokens_of(self, level: int) -> slice:
        """Where in S the tokens of a level lie."""
        start = sum(self.tokens_per_level[:level])
        return slice(start, start + self.tokens_per_level[level])

    def split(self) -> tuple['FeatureLevels', ...]:
        """L records, each of one level by itself."""
        masks = [None] * len(self.sizes)
        if self.padding_mask is not None:
            masks = self.padding_mask.split(self.tokens_per_level, dim=1)
        return tuple(
            FeatureLevels(
                sizes=(size,),
                spatial_shapes=self.spatial_shapes[i : i + 1],
                level_start_index=self.level_start_index[:1],
                valid_sizes=self.valid_sizes[:, i : i + 1],
                valid_ratios=self.valid_ratios[:, i : i + 1],
                padding_mask=mask,
            )
            for i, (size, mask) in enumerate(zip(self.sizes, masks))
        )

    def level_masks(self) -> tuple[Tensor | None, ...]:
        """L masks (B, H_l, W_l) bool, True on padding; or L times None."""
        if self.padding_mask is None:
            return (None,) * len(self.sizes)
        masks = self.padding_mask.split(self.tokens_per_level, dim=1)
        return tuple(mask.unflatten(1, size) for mask, size in zip(masks, self.sizes))

    def cell_centres(self) -> tuple[Tensor, ...]:
        """L tensors (H_l * W_l, 2) float32: (x, y) of each token's centre, in cells."""
        device = self.valid_ratios.device
        centres = []
        for rows, cols in self.sizes:
            y = torch.arange(rows, dtype=torch.float32, device=device) + 0.5
            x = torch.arange(cols, dtype=torch.float32, device=device) + 0.5
            grid = torch.stack((x.expand(rows, cols), y[:, None].expand(rows, cols)), dim=-1)
            centres.append(grid.flatten(0, 1))
        return tuple(centres)

    def token_reference_points(self) -> Tensor:
        """Reference points of the encoder: every token's centre, seen from every level.

        Returns:
            (B, S, L, 2) float32, (x, y) over the *padded* map of each level (paper 4.1).
        """
        # From the tensor on the device: a tensor made of Python numbers would be a transfer.
        extent = self.valid_ratios * self.spatial_shapes.flip(-1)  # (B, L, 2)
        normalised = [
            centres / extent[:, None, level] for level, centres in enumerate(self.cell_centres())
        ]
        return torch.cat(normalised, dim=1)[:, :, None] * self.valid_ratios[:, None]

    def to_padded_maps(self, reference_points: Tensor) -> Tensor:
        """Converts points or boxes over the pictures into ones over each level's padded map.

        Args:
            reference_points: (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), normalised by
                the unpadded picture.

        Returns:
            (B, Q, L, 2 or 4), normalised by the padded map.
        """
        ratios = self.valid_ratios[:, None]
        if reference_points.shape[-1] == 4:
            ratios = torch.cat((ratios, ratios), dim=-1)
        return reference_points[:, :, None] * ratios


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Concatenates L maps (B, C, H_l, W_l) into tokens (B, S, C), row by row, level by level."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


def _valid_cells(image_length: int, batch_length: int, cells: int) -> int:
    """Cells of one axis that nearest interpolation of the padding mask leaves valid.

    In float32, as torch's interpolate computes its source index, so that odd sizes round alike.
    """
    scale = np.float32(batch_length) / np.float32(cells)
    source = np.floor(np.arange(cells, dtype=np.float32) * scale)
    return int((source < image_length).sum())


def _padding_mask(sizes: Sequence[Size], valid_sizes: Tensor) -> Tensor:
    """(B, S) bool from the number of valid columns and rows, (B, L, 2) as (width, height)."""
    masks = []
    for level, (rows, cols) in enumerate(sizes):
        valid_cols, valid_rows = valid_sizes[:, level, 0], valid_sizes[:, level, 1]
        outside_x = torch.arange(cols, device=valid_sizes.device) >= valid_cols[:, None]
        outside_y = torch.arange(rows, device=valid_sizes.device) >= valid_rows[:, None]
        masks.append((outside_y[:, :, None] | outside_x[:, None, :]).flatten(1))
    return torch.cat(masks, dim=1)
