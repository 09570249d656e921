"""A resumed training has the settings of its config, not those of the run that it continues.

mmengine takes learning rates, weight decays and schedules from the checkpoint, whatever the config
says now.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper

from ddetr_plugin.checkpoints.files.config_text import read_config_text
from ddetr_plugin.engine import mmengine_private
from ddetr_plugin.engine.resuming.optimizer import adapt_optimizer

__all__ = ['apply_present_settings']

# What of a config makes a training, with what else makes its checkpoints.
ROOTS = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'randomness',
    'val_dataloader',
    'val_cfg',
    'val_evaluator',
    'custom_hooks',
)
CHECKPOINTS = 'default_hooks.checkpoint.'
# Told by what it changes in the optimiser and its schedules, if anything.
TOLD_BY_EFFECT = (
    'optim_wrapper.optimizer.',
    'optim_wrapper.paramwise_cfg.',
    'param_scheduler',
    'auto_scale_lr',
)
# What the best score so far was measured by.
MEASURE = (
    'val_evaluator',
    'val_dataloader.dataset',
    *(f'{CHECKPOINTS}{key}' for key in ('save_best', 'rule', 'greater_keys', 'less_keys')),
)
LONGEST = 60  # characters of a value


class Difference(NamedTuple):
    """A setting that the run of the checkpoint had otherwise.

    Attributes:
        key: with dots, such as 'train_cfg.max_epochs'.
        was: its value in that run; None if it had none.
        now: the present one; None if there is none.
    """

    key: str
    was: Any
    now: Any

    def __str__(self):
        return f'{self.key} {_short(self.now)} (was {_short(self.was)})'


def apply_present_settings(runner, checkpoint: dict) -> None:
    """Change a checkpoint that is about to be resumed from into one of the present settings.

    What differs is logged, setting by setting, with what becomes of it. A checkpoint of the same
    settings is left as it is.

    Args:
        runner: with its optimiser and its schedules built and fresh. Schedules that differ are
            taken forward to where the checkpoint stands, and the learning rates with them.
        checkpoint: content of the file; changed in place.
    """
    saved_config = read_config_text(checkpoint['meta'].get('cfg') or '')
    found = list(config_differences(saved_config, read_config_text(runner.cfg.pretty_text)))
    used: list[str] = []
    kept: list[str] = []
    wrapper, state = runner.optim_wrapper, checkpoint.get('optimizer')
    if isinstance(wrapper, OptimWrapper) and state is not None:
        same = bool(saved_config) and not any(
            difference.key.startswith(('optim_wrapper', 'auto_scale_lr')) for difference in found
        )
        used, kept = adapt_optimizer(runner, checkpoint, same)
        _adapt_loss_scale(state, wrapper, found)
    elif state is not None:
        kept.append('the settings of the optimisers, of which there are several')
    _adapt_averages(runner, checkpoint, used)
    for difference in found:
        if not difference.key.startswith(TOLD_BY_EFFECT):
            remark = _kept_of(difference, runner, checkpoint)
            (used if remark is None else kept).append(remark or str(difference))
    _tell(runner, used, kept)


def config_differences(was: Mapping, now: Mapping) -> Iterator[Difference]:
    """The settings of a training in which two configs differ.

    Args:
        was: of the run so far; empty if that is not known, and then nothing differs.
        now: the present one.
    """
    if was:
        for root in (*ROOTS, 'param_scheduler', 'auto_scale_lr', 'default_hooks'):
            for difference in _differences(root, was.get(root), now.get(root)):
                if root != 'default_hooks' or difference.key.startswith(CHECKPOINTS):
                    yield difference


def _differences(key: str, was: Any, now: Any) -> Iterator[Difference]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*now, *was)):
            yield from _differences(f'{key}.{name}', was.get(name), now.get(name))
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (one, other) in enumerate(zip(was, now)):
            yield from _differences(f'{key}.{i}', one, other)
    elif was != now:
        yield Difference(key, was, now)


def _adapt_loss_scale(state: dict, wrapper: OptimWrapper, found: list[Difference]) -> None:
    """Start anew with a loss scale that the config gives now."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    changed = any(d.key.startswith('optim_wrapper.loss_scale') for d in found)
    if scaler is not None and 'loss_scaler' in state and changed:
        state['loss_scaler'] = scaler.state_dict()


def _adapt_averages(runner, checkpoint: dict, used: list[str]) -> None:
    """Without EMAHook, go on from what was trained: the file's weights are the averages."""
    averages = checkpoint.get('ema_state_dict')
    if averages is None or any(isinstance(hook, EMAHook) for hook in runner.hooks):
        return
    weights = checkpoint['state_dict']
    for name, trained in averages.items():
        if name.removeprefix('module.') in weights and name.startswith('module.'):
            weights[name.removeprefix('module.')] = trained
    used.append('no EMAHook: the weights are those that were trained, not their averages')


def _kept_of(difference: Difference, runner, checkpoint: dict) -> str | None:
    """What a resumed run keeps of its checkpoint although a setting differs; None for nothing."""
    if difference.key == 'randomness.seed' and difference.now is not None:
        return (
            f'{difference}: it orders the images from here on, but random numbers are still those '
            f'of seed {checkpoint["meta"].get("seed")}'
        )
    best = checkpoint['message_hub'].get('runtime_info', {}).get('best_score')
    if difference.key.startswith(MEASURE) and best is not None:
        return f'{difference}: but the best score so far, {best:.4g}, was measured as before'
    if difference.key == 'train_dataloader.batch_size':
        scaled = (runner.cfg.get('auto_scale_lr') or {}).get('enable')
        rate = '' if scaled else '; learning rates do not scale with it (see --auto-scale-lr)'
        return f'{difference}: but {checkpoint["meta"]["iter"]} iterations count as done{rate}'
    return None


def _tell(runner, used: list[str], kept: list[str]) -> None:
    if not used and not kept:
        return
    lines = [f'{mmengine_private.load_path(runner)} is of a run with other settings.']
    for title, texts in (('From here on', used), ('Not, or only in part', kept)):
        if texts:
            lines += [f'{title}:', *(f'  {text}' for text in dict.fromkeys(texts))]
    level = logging.WARNING if kept else logging.INFO
    print_log('\n'.join(lines), logger='current', level=level)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'
