"""Where two models of different libraries begin to compute different numbers."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

__all__ = ['first_difference']


def first_difference(
    one: nn.Module,
    other: nn.Module,
    counterparts: Mapping[str, str],
    run: Callable[[], object],
    tolerance: float = 1e-3,
) -> str | None:
    """The first module of `one`, in the order of computation, whose result its counterpart has not.

    Args:
        one: a model.
        other: the model that it is compared with.
        counterparts: names of modules of `one` to those of `other`; names that are none of a
            module that computes are left out.
        run: runs both models, on the same inputs.
        tolerance: of the difference, relative to the largest number.

    Returns:
        Its name in `one`; None if there is none, for instance because modules are not called.
    """
    ours: dict[str, list[Tensor]] = {}
    theirs: dict[str, list[Tensor]] = {}
    handles = []
    modules, others = dict(one.named_modules()), dict(other.named_modules())
    for name, counterpart in counterparts.items():
        if name in modules and counterpart in others:
            handles.append(modules[name].register_forward_hook(_keeper(ours, name)))
            handles.append(others[counterpart].register_forward_hook(_keeper(theirs, name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    # A dict keeps the order in which `one` called them.
    for name, results in ours.items():
        for result, wanted in zip(results, theirs.get(name, ())):
            same_shape = result.shape == wanted.shape
            bound = tolerance * max(wanted.abs().max().item(), 1e-6) if same_shape else 0
            # So written, numbers that are not finite differ, too.
            if not (same_shape and (result - wanted).abs().max() <= bound):
                return name
    return None


def _keeper(results: dict[str, list[Tensor]], name: str) -> Callable:
    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            # What follows may work in place.
            results.setdefault(name, []).append(output.detach().clone())

    return keep
