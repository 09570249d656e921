"""Training with parameters, gradients and optimiser state shared out among processes (FSDP)."""

import copy
from collections.abc import Collection

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.fileio import join_path
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
)

from ddetr_plugin.engine.hooks.atomic_checkpoint import AtomicCheckpointHook
from ddetr_plugin.engine.hooks.bad_numbers import scaled
from ddetr_plugin.registry import RUNNERS, STRATEGIES

__all__ = ['ShardingRunner', 'ShardingStrategy', 'full_state_dict', 'wrap_classes']


def wrap_classes(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, names: Collection[str]
) -> bool:
    """FSDP's `auto_wrap_policy`: every module of a class named in `names` is a unit of its own.

    The weights of a unit are complete only while its `forward` runs. Modules whose other methods
    are called, such as `bbox_head`, must stay in the root unit.

    Args:
        module: the module in question.
        recurse: whether FSDP asks if it shall look at the children, too.
        nonwrapped_numel: number of weights; not read.
        names: names of classes, such as 'DeformableTransformerEncoderLayer'.
    """
    return recurse or type(module).__name__ in names


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model inside a wrapper, whole in every process, sharded or not.

    All processes must call it.
    """
    if not isinstance(model, FullyShardedDataParallel):
        whole = model.get_submodule('module') if is_model_wrapper(model) else model
        return whole.state_dict()
    configs = (FullStateDictConfig(), FullOptimStateDictConfig(offload_to_cpu=False))
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, *configs):
        return model.state_dict()


@STRATEGIES.register_module()
class ShardingStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy that clips gradients by the norm of all of them, and runs on CPUs.

    mmengine clips by the norm of the part that a process holds, with another factor in each. Its
    arguments are those of mmengine's strategy. With ``state_dict_cfg='full'`` checkpoints are
    those of an unsharded training: any Runner loads them. Mixed precision is bfloat16's.

    Raises:
        ValueError: there are no processes among which to share; or gradients are scaled, as in
            float16: after an overflow in one process, each would have another scale.
    """

    model_wrapper: dict | None

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.distributed.is_initialized():
            raise ValueError(
                'a sharded training needs several processes: start it with torchrun and '
                '--launcher pytorch. Its checkpoints load without sharding, too'
            )
        # mmengine takes it apart while building.
        self.model_wrapper = copy.deepcopy(self.model_wrapper) or {}
        if not torch.cuda.is_available():
            # By default FSDP looks for a GPU, and moves what it saves from there.
            self.model_wrapper['device_id'] = 'cpu'
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper, model=None) -> OptimWrapper:
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if scaled(wrapper):
            raise ValueError(
                f'a sharded training cannot scale gradients, as {type(wrapper).__name__} does in '
                "float16; use dict(type='ddetr_plugin.AutocastOptimWrapper', dtype='bfloat16', ...)"
            )
        if getattr(wrapper, 'clip_func', None) is nn.utils.clip_grad_norm_:

            def clip_grad_norm(parameters, max_norm, norm_type=2.0):
                return model.clip_grad_norm_(max_norm, norm_type)

            wrapper.clip_func = clip_grad_norm
        return wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Take over the optimiser's state from a checkpoint; mmengine mixes up the arguments.

        Args:
            state_dict: what `optim_state_dict` returned in the first process.
        """
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state)


@RUNNERS.register_module()
class ShardingRunner(FlexibleRunner):
    """mmengine's FlexibleRunner whose checkpoints know at which epoch they were written.

    CheckpointHook writes a checkpoint once more after a validation that was the best so far. By
    then the epoch is counted; mmengine counts it again, and resuming would leave one out.
    """

    def load_or_resume(self) -> None:
        """As mmengine's, after `AtomicCheckpointHook` has chosen the checkpoint.

        It does so in `before_run`, which comes too late here.
        """
        for hook in self.hooks:
            if isinstance(hook, AtomicCheckpointHook):
                hook.before_run(self)
        super().load_or_resume()

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """What CheckpointHook calls, in every process.

        Args:
            out_dir: folder.
            filename: name in it.
            file_client_args: must be None: mmengine has replaced it by `backend_args`.
            save_optimizer: include the optimiser's state.
            save_param_scheduler: include the schedules' state.
            meta: numbers of `epoch` and `iter` with which a resumed training starts; where they
                are missing, those of the end of the running epoch or iteration.
            by_epoch: whether an epoch ends, or an iteration.
            backend_args: of mmengine's file backend.

        Raises:
            ValueError: `file_client_args` is given.
        """
        if file_client_args is not None:
            raise ValueError('give backend_args instead of file_client_args')
        counted = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        meta = {
            **counted,
            **(meta or {}),
            'cfg': self.cfg.pretty_text,
            'experiment_name': self.experiment_name,
        }
        metainfo = getattr(self.train_dataloader.dataset, 'metainfo', None)
        if metainfo is not None:
            meta['dataset_meta'] = metainfo
        self.strategy.save_checkpoint(
            filename=join_path(out_dir, filename, backend_args=backend_args),
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            extra_ckpt=dict(meta=meta, message_hub=self.message_hub.state_dict()),
            callback=lambda checkpoint: self.call_hook(
                'before_save_checkpoint', checkpoint=checkpoint
            ),
        )
