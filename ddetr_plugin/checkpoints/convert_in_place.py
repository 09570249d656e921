"""Foreign weights where a model loads its own: `load_state_dict`, and mmengine's `load_from`."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ddetr_plugin.checkpoints.convert import to_ours
from ddetr_plugin.checkpoints.files.reading import Source, read_checkpoint, unwrap, with_config
from ddetr_plugin.checkpoints.files.safe_loading import load_file
from ddetr_plugin.checkpoints.files.stated_settings import our_settings
from ddetr_plugin.checkpoints.files.transformers_folder import weight_files
from ddetr_plugin.checkpoints.names.detect import OURS, detect_dialect
from ddetr_plugin.checkpoints.record import Conversion
from ddetr_plugin.compat.safe_globals import allow_official_checkpoints

__all__ = ['adopt', 'install_checkpoint_loader']


def adopt(state_dict: dict, prefix: str, model: nn.Module) -> Conversion | None:
    """Rewrites `state_dict` in place if its names are not those of our model; else leaves it alone.

    Args:
        state_dict: what `model` is about to load; also with the weights one level down, as
            official files hold them.
        prefix: what comes before the names of `model`.
        model: ours; decides variant, number of classes and whether the neck has a bias.

    Returns:
        What was done, or None if nothing was.

    Raises:
        RuntimeError: weights are left over or missing, or shapes do not fit.
    """
    inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    try:
        source = unwrap(inside)
        dialect = detect_dialect(source.state)
        if dialect is None or (dialect == OURS and not source.notes):
            return None
        converted = to_ours(
            source,
            target=model.state_dict(),
            # What is missing in our own names is the business of load_state_dict.
            allow_missing=dialect == OURS,
            target_refines=our_settings(model).get('with_box_refine'),
        )
    except ValueError as error:
        # What load_state_dict raises where weights do not fit.
        raise RuntimeError(str(error)) from error
    for note in source.notes:
        print_log(note, logger='current')
    for warning in converted.warnings:
        print_log(warning, logger='current', level=logging.WARNING)
    for name in inside:
        del state_dict[prefix + name]
    state_dict.update((prefix + name, tensor) for name, tensor in converted.state.items())
    return converted


def install_checkpoint_loader() -> None:
    """Let mmengine's `load_from` read official files, safetensors and transformers' folders.

    Nor does any file run code then: mmengine reads what it has downloaded without torch's safety,
    and other files without it where the environment says so. Calling it again changes nothing.
    """
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    if loader._schemes[''] is load_from_local:
        return
    allow_official_checkpoints()
    loader.register_scheme('', load_from_local, force=True)
    # What all of mmengine's loaders of https:// and torchvision:// come down to.
    load_url = mmengine_checkpoint.load_url
    mmengine_checkpoint.load_url = functools.partial(load_url, weights_only=True)


# mmengine prints what follows `load_from_`.
def load_from_local(filename: str, map_location: Any) -> Any:
    """mmengine's loader of files without a scheme such as ``https://``.

    Args:
        filename: file, or folder of transformers, or its index of several files.
        map_location: as for ``torch.load``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or asks for more than weights.
    """
    path = Path(filename).expanduser()
    if path.suffix in ('.safetensors', '.json') or path.is_dir():
        return _as_runners_write(read_checkpoint(path))
    (path,) = weight_files(path)
    content = load_file(path, map_location=map_location)
    if isinstance(content, Mapping) and 'state_dict' not in content:
        source = unwrap(content)
        if detect_dialect(source.state) not in (None, OURS):
            source = with_config(source, path.with_name('config.json'))
            return {**_as_runners_write(source), **_plain(content)}
    return content


def _as_runners_write(source: Source) -> dict:
    """Where hooks such as EMAHook look for the weights, and ours for what the file said."""
    said = {} if source.dilated is None else {'dilation': source.dilated}
    return {'state_dict': source.state, 'meta': {**source.meta, **said}}


def _plain(content: Mapping) -> dict:
    """What else a file holds, if its weights lie one level down."""
    nested = any(isinstance(value, Mapping) for value in content.values())
    if not nested:
        return {}
    return {k: v for k, v in content.items() if not isinstance(v, torch.Tensor) and k != 'meta'}
