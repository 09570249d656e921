"""Optimiser and schedules of a checkpoint with the settings of the present config."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.runner import EpochBasedTrainLoop
from torch.optim import Optimizer

__all__ = ['adapt_optimizer', 'base_settings', 'drop_untrained']

INITIAL = 'initial_'
# Of a schedule's state: where it stands, and what it starts from, which the groups hold, too.
POSITION = ('_global_step', '_last_value', 'base_values', 'last_step', 'verbose')
# Settings that cannot be turned on later, with what the optimiser would have had to remember.
NEEDED = dict(amsgrad='max_exp_avg_sq', centered='grad_avg', momentum='momentum_buffer')


def drop_untrained(state: dict, optimizer: Optimizer) -> None:
    """Leave parameters out of an optimiser's state that have never been trained.

    Checkpoints are like that whose backbone was frozen after the optimiser was built. Where what
    remains fits the optimiser, the groups lose those parameters; else the state stays as it is.

    Args:
        state: of the optimiser, as a checkpoint holds it; its groups are changed in place.
        optimizer: that is to load it.
    """
    groups = state['param_groups']
    wanted = [len(group['params']) for group in optimizer.param_groups]
    trained = [[key for key in group['params'] if state['state'].get(key)] for group in groups]
    found = [len(group['params']) for group in groups]
    if found != wanted and [len(keys) for keys in trained if keys] == wanted:
        groups[:] = [dict(group, params=keys) for group, keys in zip(groups, trained) if keys]


def adapt_optimizer(runner, checkpoint: dict, same_config: bool) -> tuple[list[str], list[str]]:
    """Give the optimiser's state in a checkpoint the present settings, and the schedules' state.

    Schedules start anew and go as far as the checkpoint has come, so that the learning rates are
    those of a run with the present settings from its first step. Where nothing differs, nothing
    is changed.

    Args:
        runner: with its OptimWrapper and its schedules built; the schedules are used up.
        checkpoint: with `optimizer` and `meta`; changed in place.
        same_config: the configs do not differ in what makes the optimiser. Then values that no
            schedule changes are the checkpoint's: hooks may have changed them.

    Returns:
        What differs and is used from here on, and what is not; a phrase each.
    """
    state, wrapper = checkpoint['optimizer'], runner.optim_wrapper
    groups = len(state['param_groups'])
    drop_untrained(state, wrapper.optimizer)
    saved = [*state['param_groups']]
    if 'base_param_settings' in state:
        saved.append(state['base_param_settings'])
    pairs = list(zip(saved, wrapper.param_groups))
    schedules = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    used = list(schedule_differences(checkpoint.get('param_schedulers') or [], schedules))
    kept = []
    changed = [name for name in _differing(pairs) if not same_config or _scheduled(name, pairs)]
    for name in [name for name in changed if _lacks_state(name, pairs, state['state'])]:
        kept.append(f'{name} {_values(name, pairs)}: it cannot be turned on in the middle')
        changed.remove(name)
    reschedule = (
        bool(used)
        or groups != len(state['param_groups'])
        or any(_scheduled(name, pairs) for name in changed)
    )
    if reschedule and any(getattr(schedule, 'need_val_args', False) for schedule in schedules):
        names = [name for name in changed if _scheduled(name, pairs)]
        kept += [*used, *(f'{name} {_values(name, pairs)}' for name in names)]
        kept.append('the schedules, one of which depends on the scores so far')
        changed = [name for name in changed if name not in names]
        used, reschedule = [], False
    used += [f'{name} {_values(name, pairs)}' for name in changed]
    if reschedule:
        rates = [group['lr'] for group in saved]
        replay(schedules, steps_done(runner, checkpoint['meta']))
        changed += [name for name in wrapper.param_groups[0] if _scheduled(name, pairs)]
    for group, present in pairs:
        group.update({name: present[name] for name in changed if name in present})
        if reschedule:
            for name in [name for name in group if name.startswith(INITIAL)]:
                del group[name]
            initial = {k: v for k, v in present.items() if k.startswith(INITIAL)}
            group.update(initial)
    if reschedule:
        checkpoint['param_schedulers'] = [copy.deepcopy(s.state_dict()) for s in schedules]
        now = [group['lr'] for group in saved]
        if now != rates:
            used.append(f'at this point: lr {_arrows(zip(rates, now))}')
    return used, kept


def base_settings(group: Mapping) -> dict[str, Any]:
    """The settings of a group before any schedule changed them, by name."""
    found = {
        name: group.get(f'{INITIAL}{name}', value)
        for name, value in group.items()
        if name != 'params' and not name.startswith(INITIAL)
    }
    if 'betas' in found and 'momentum' in found:
        # What a schedule of momentum writes for optimisers that have betas.
        found['betas'] = (found.pop('momentum'), found['betas'][1])
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def schedule_differences(saved: Any, schedules: Sequence) -> Iterator[str]:
    """What schedules do otherwise than those of which there are states, a phrase each."""
    if not isinstance(saved, list) or len(saved) != len(schedules):
        yield f'{len(schedules)} schedules (were {len(saved)})'
        return
    for state, schedule in zip(saved, schedules):
        was, now = (
            {k: v for k, v in found.items() if k not in POSITION}
            for found in (state, schedule.state_dict())
        )
        kind = type(schedule).__name__
        if was.keys() != now.keys():
            yield f'{kind} (was another schedule)'
            continue
        for key in (key for key in now if now[key] != was[key]):
            yield f'{kind} {key} {_plain(now[key])} (was {_plain(was[key])})'


def steps_done(runner, meta: Mapping) -> list[int]:
    """How many steps each schedule of a runner has made where a checkpoint was written."""
    configs = runner.cfg.get('param_scheduler') or []
    configs = [configs] if isinstance(configs, Mapping) else configs
    steps = []
    for i, schedule in enumerate(runner.param_schedulers or []):
        converted = i < len(configs) and configs[i].get('convert_to_iter_based', False)
        if schedule.by_epoch:
            steps.append(meta['epoch'])
        elif converted and isinstance(runner.train_loop, EpochBasedTrainLoop):
            # Epochs have another length if the batch size differs.
            steps.append(meta['epoch'] * len(runner.train_dataloader))
        else:
            steps.append(meta['iter'])
    return steps


def replay(schedules: Sequence, steps: Sequence[int]) -> None:
    """Make so many steps of each schedule, in the order of a training of even epochs."""
    done, length = [0] * len(schedules), max(steps, default=0)
    with warnings.catch_warnings():
        # There was no step of the optimiser before.
        warnings.simplefilter('ignore')
        for now in range(1, length + 1):
            for i, schedule in enumerate(schedules):
                while done[i] < now * steps[i] // length:
                    schedule.step()
                    done[i] += 1


def _differing(pairs: list[tuple[dict, dict]]) -> list[str]:
    found: dict[str, None] = {}
    for group, present in pairs:
        was, now = base_settings(group), base_settings(present)
        found |= {name: None for name in now if name in was and now[name] != was[name]}
    return list(found)


def _scheduled(name: str, pairs: list[tuple[dict, dict]]) -> bool:
    twin = f'{INITIAL}{"momentum" if name == "betas" else name}'
    return any(twin in group for pair in pairs for group in pair)


def _lacks_state(name: str, pairs: list[tuple[dict, dict]], state: Mapping) -> bool:
    turned_on = any(present.get(name) and not group.get(name) for group, present in pairs)
    key = NEEDED.get(name)
    return turned_on and key is not None and not any(key in of_one for of_one in state.values())


def _values(name: str, pairs: list[tuple[dict, dict]]) -> str:
    bases = [(base_settings(group), base_settings(present)) for group, present in pairs]
    return _arrows((was[name], now[name]) for was, now in bases if name in was and name in now)


def _arrows(pairs) -> str:
    return ', '.join(dict.fromkeys(f'{_plain(now)} (was {_plain(was)})' for was, now in pairs))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        # The milestones of MultiStepLR are counted.
        value = sorted(value)
    return f'{value:.6g}' if isinstance(value, float) else str(value)
