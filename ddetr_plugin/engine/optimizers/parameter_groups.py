"""Few groups of parameters, so that an optimiser's step is few calls."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ddetr_plugin.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['MergedGroupsConstructor']


def merge_groups(groups: list[dict]) -> list[dict]:
    """Optimiser groups with equal settings become one, where the first of them stood."""
    merged: list[tuple[dict, list]] = []
    for group in groups:
        settings = {name: value for name, value in group.items() if name != 'params'}
        # Compared, not hashed: a config's betas are a list.
        for known, parameters in merged:
            if known == settings:
                parameters += group['params']
                break
        else:
            merged.append((settings, list(group['params'])))
    return [dict(settings, params=parameters) for settings, parameters in merged]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one group of parameters per setting.

    With a `paramwise_cfg` mmengine makes a group of each single parameter, some hundreds. Fused
    and foreach optimisers handle one group at a time, so that nothing is left to fuse. Learning
    rates and weight decays are the same as with mmengine's; its arguments, too.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add the groups of `module` to `params`; called for the model, then for its children."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            params[:] = merge_groups(params)
