"""``python -m ddetr_plugin.ops``: which implementation runs here, how it was built, is it right."""

import sys

import torch

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_reference, native_load_error
from ddetr_plugin.ops._native import cuda_load_error


def largest_error(device: str) -> float:
    """Largest difference to the reference, output and gradients, on a small float32 problem.

    Args:
        device: where to run.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 9), (3, 5)]
    tokens = sum(height * width for height, width in sizes)
    value = torch.randn(2, tokens, 4, 32, generator=generator)
    locations = torch.rand(2, 7, 4, 2, 4, 2, generator=generator) * 1.2 - 0.1
    weights = torch.rand(2, 7, 4, 2, 4, generator=generator)
    grad_output = torch.randn(2, 7, 128, generator=generator).to(device)
    results = []
    for function in (ms_deform_attn, ms_deform_attn_reference):
        inputs = [x.to(device).requires_grad_() for x in (value, locations, weights)]
        output = function(inputs[0], sizes, None, *inputs[1:])
        results.append([output, *torch.autograd.grad(output, inputs, grad_output)])
    # torch's max, not Python's, which would pass over NaN.
    return torch.stack([(a - b).abs().max() for a, b in zip(*results)]).max().item()


def main() -> int:
    """Prints the report; returns 0 when the native operator runs and is right."""
    error = native_load_error()
    print(f'torch: {torch.__version__}, {torch.get_num_threads()} threads')
    if error is None:
        print('implementation: native')
        print(f'CPU kernels: {torch.ops.ddetr_plugin.cpu_capability()}')
        print(f'build: {torch.ops.ddetr_plugin.build_info()}')
        no_cuda = cuda_load_error()
        print(f'CUDA kernels: {no_cuda or torch.ops.ddetr_plugin.cuda_build_info()}')
    else:
        print(f'implementation: PyTorch (slow), because {error}')
        print('remedy: pip install --no-build-isolation -e .')
    right = True
    for device in ['cpu'] + (['cuda'] if torch.cuda.is_available() else []):
        difference = largest_error(device)
        # float32 sums of a few hundred products of size one, in another order.
        right_here = difference < 1e-3
        right = right and right_here
        print(f'self-check on {device}: {"ok" if right_here else "FAILED"} ({difference:.1e})')
    return 0 if right and error is None else 1


if __name__ == '__main__':
    sys.exit(main())
