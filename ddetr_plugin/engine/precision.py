"""Mixed precision where it helps: what --amp and configs ask for, and what this CPU makes of it.

A CPU without instructions for 16-bit products computes them many times slower than in float32.
Which do is measured, not looked up: by one matrix product and one convolution.
"""

import statistics
import time
import warnings

import torch
import torch.nn.functional as nnf
from mmengine.config import ConfigDict
from mmengine.device import get_device

from ddetr_plugin.config_types import has_type, type_name
from ddetr_plugin.engine.optimizers.autocast import DTYPES
from ddetr_plugin.engine.processes import is_first

__all__ = [
    'AUTO',
    'FORCE',
    'SlowPrecisionError',
    'require_gain',
    'set_precision',
    'set_test_precision',
    'time_ratio',
]

AUTO, FORCE = 'auto', 'force'
ROUNDS = 5


class SlowPrecisionError(ValueError):
    """16 bits take this CPU longer than float32; the message says how much and what to do."""


def _seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def time_ratio(dtype, seconds=_seconds):
    """How many times as long this CPU computes in 16 bits as in float32: below 1, they help.

    The sum of one matrix product and one convolution, of the sizes that a small detector has. They
    take turns, and medians count; a third of a second where 16 bits are slow.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        seconds: takes a function without arguments, calls it, and returns how long that took.
    """
    # Not random: what is drawn here would change what is drawn after it.
    tokens, matrix = torch.ones(512, 256), torch.ones(256, 256)
    feature_map, kernel = torch.ones(1, 64, 16, 16), torch.ones(64, 64, 3, 3)
    times: dict[tuple[str, torch.dtype], list[float]] = {}
    with torch.inference_mode(), torch.autocast('cpu', enabled=False):
        for number in range(ROUNDS + 1):
            for name, function, *inputs in (
                ('product', nnf.linear, tokens, matrix),
                ('convolution', nnf.conv2d, feature_map, kernel),
            ):
                for kind in (torch.float32, dtype):
                    cast = [x.to(kind) for x in inputs]
                    taken = seconds(lambda: function(*cast))  # noqa: B023  called at once
                    # The first of each also prepares what the others find prepared.
                    if number:
                        times.setdefault((name, kind), []).append(taken)
    medians = {key: statistics.median(values) for key, values in times.items()}
    narrow, wide = (
        sum(value for (_, kind), value in medians.items() if kind == wanted)
        for wanted in (dtype, torch.float32)
    )
    return narrow / wide


def require_gain(dtype):
    """Check for --amp that this CPU is no slower in 16 bits than in float32.

    Args:
        dtype: torch.bfloat16 or torch.float16.

    Raises:
        SlowPrecisionError: it is slower.
    """
    ratio = time_ratio(dtype)
    if ratio > 1:
        raise SlowPrecisionError(
            f'--amp would make this slower: {_found(dtype, ratio)}. Leave --amp out, or use a GPU '
            'or a CPU with instructions for 16-bit products (AVX-512 BF16, AMX); --amp force does '
            'it all the same'
        )


def _found(dtype, ratio):
    name = str(dtype).removeprefix('torch.')
    return (
        f'this CPU takes {ratio:.1f} times as long for a matrix product and a convolution in '
        f'{name} as in float32'
    )


def _warn_if_slow(dtype, what):
    ratio = time_ratio(dtype)
    if ratio > 1:
        warnings.warn(
            f'{what} computes in 16 bits, but {_found(dtype, ratio)}; float32 would be faster',
            stacklevel=3,
        )


def _on_cpu():
    return not torch.cuda.is_available() and get_device() == 'cpu'


def _probes(config):
    """Whether this process measures: on a GPU none does.

    Of several processes the first alone does, before they meet, as their measurements could
    differ. Where it stops, the launcher stops the others.
    """
    return _on_cpu() and is_first(config)


def set_precision(config, amp=None):
    """Set up a training in the precision that --amp asks for, else leave it as the config has it.

    --amp is scaled float16 on CUDA, bfloat16 autocast elsewhere and for shards of parameters
    (FSDP). Where a config itself asks for 16 bits on a CPU that is slower with them, a warning
    says so.

    Args:
        config: Config, as `load_config` read it.
        amp: None, 'auto' or 'force'.

    Raises:
        SlowPrecisionError: `amp` is 'auto' and this CPU is slower in 16 bits.
        ValueError: the config's optim_wrapper is of a kind that cannot be exchanged, or needs a
            GPU.
    """
    wrapper = config.get('optim_wrapper') or ConfigDict()
    kind = type_name(wrapper, 'OptimWrapper')
    own = kind in ('AmpOptimWrapper', 'AutocastOptimWrapper')
    if kind == 'AmpOptimWrapper' and _on_cpu():
        raise ValueError(
            "the config's optim_wrapper is mmengine's AmpOptimWrapper, which needs a GPU; on a "
            "CPU use type='ddetr_plugin.AutocastOptimWrapper', or OptimWrapper for float32"
        )
    if amp and not own and kind != 'OptimWrapper':
        raise ValueError(
            f'--amp replaces an optim_wrapper of type OptimWrapper, but the config has {kind!r}; '
            'set up mixed precision in the config instead'
        )
    if _probes(config):
        # An unknown one is refused by the wrapper.
        dtype = DTYPES.get(wrapper.get('dtype'), torch.bfloat16)
        if amp == AUTO:
            require_gain(dtype)
        elif own and not amp:
            _warn_if_slow(dtype, "the config's AutocastOptimWrapper")
        if not amp and (config.get('val_cfg') or {}).get('fp16'):
            _warn_if_slow(torch.bfloat16, "validation with the config's val_cfg.fp16=True")
    if amp and not own:
        if torch.cuda.is_available() and 'strategy' not in config:
            wrapper.type = 'AmpOptimWrapper'
            wrapper.loss_scale = 'dynamic'
        else:
            wrapper.type = 'ddetr_plugin.AutocastOptimWrapper'


def set_test_precision(config, amp=None):
    """The same for a test: --amp is mmengine's ``test_cfg.fp16``, autocast.

    It is bfloat16 on a CPU, and on a GPU the dtype that autocast has there, float16.

    Args:
        config: Config, as `load_config` read it.
        amp: None, 'auto' or 'force'.

    Raises:
        SlowPrecisionError: `amp` is 'auto' and this CPU is slower in 16 bits.
        ValueError: `test_cfg` has a loop of another kind than TestLoop, which has no such setting.
    """
    loop = config.get('test_cfg') or {}
    if amp and not has_type(loop, 'TestLoop', ''):
        raise ValueError(
            f'--amp sets fp16 of a TestLoop, but test_cfg has {type_name(loop)!r}; set up mixed '
            'precision in the config instead'
        )
    if _probes(config):
        if amp == AUTO:
            require_gain(torch.bfloat16)
        elif not amp and loop.get('fp16'):
            _warn_if_slow(torch.bfloat16, "the config's test_cfg.fp16=True")
    if amp:
        config.test_cfg = dict(loop, fp16=True)
