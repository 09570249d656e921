"""Settings of data loaders that are for worker processes only."""

import warnings

__all__ = ['drop_worker_settings']

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Without workers torch's DataLoader raises where one of them is set.
FOR_WORKERS = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context', 'timeout')


def drop_worker_settings(config):
    """Leave out what is for data workers where there are none (``num_workers=0``), and warn of it.

    Args:
        config: Config; its data loaders are replaced, not changed.
    """
    for name in LOADERS:
        loader = config.get(name)
        if not loader or loader.get('num_workers', 0) != 0:
            continue
        config[name] = {key: value for key, value in loader.items() if key not in FOR_WORKERS}
        unused = [key for key in FOR_WORKERS if loader.get(key)]
        if unused:
            warnings.warn(
                f'{name} has num_workers=0: {", ".join(unused)} of the config, which is for data '
                'workers, is left out',
                stacklevel=2,
            )
