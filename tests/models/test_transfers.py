"""The counter of transfers that other tests rely on."""

import pytest
import torch
from transfers import count_transfers

READS = {
    'item': lambda x: x.sum().item(),
    'bool': lambda x: bool((x > 0).any()),
    'tolist': lambda x: x.tolist(),
    'cpu': lambda x: x.cpu().numpy(),
    'numpy': lambda x: x.numpy(),
    'nonzero': lambda x: x.nonzero(),
    'a mask as an index': lambda x: x[x > 0],
    'a mask as a target': lambda x: x.clone().__setitem__(x > 0, 1.0),
    'lengths on the device': lambda x: torch.repeat_interleave(x, torch.tensor([2, 1, 3])),
}


@pytest.mark.parametrize('name', READS)
def test_every_way_of_reading_a_tensor_is_counted_once(name):
    with count_transfers() as transfers:
        READS[name](torch.tensor([1.0, -1.0, 2.0]))
    assert len(transfers) == 1


def test_arithmetic_and_gathering_are_not_counted():
    with count_transfers() as transfers:
        x = torch.randn(3, 4)
        (x.softmax(-1)[:, torch.tensor([1, 2])].topk(1).values.masked_fill(x[:, :1] > 0, 0)).sum()
    assert transfers == []
