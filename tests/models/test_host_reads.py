"""What makes the host look at a device's values is refused on any device, and nothing else is."""

import pytest
import torch

from veto_pl.models.host_reads import HostReadError, refused_host_reads

READS = {
    "a number": lambda x: float(x[0]),
    "a branch": lambda x: 1 if (x > 1).all() else 0,
    "equality": lambda x: torch.equal(x, x),
    "the places of what is true": lambda x: x.nonzero(),
    "rows of a mask": lambda x: x[x > 1],
    "values for a mask": lambda x: x.index_put_((x > 0,), torch.ones_like(x)),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "different values": lambda x: x.unique(),
    "numbers of the host": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "another device": lambda x: x.to("meta"),
}
FREE = {
    "arithmetic": lambda x: (x * 2).softmax(-1),
    "another type": lambda x: x.double(),
    "rows by an index": lambda x: x[x.long().clamp(0, 2)],
    "a write by an index": lambda x: x.index_copy_(0, x[:1].long() * 0, x[:1] * 2),
    "a number at a mask": lambda x: x.masked_fill(x > 1, 0.0),
    "a choice": lambda x: torch.where(x > 1, x, -1.0),
    "known repeats": lambda x: x.repeat_interleave(x.long(), output_size=6),
    "sorting": lambda x: (x.sort(), x.topk(2), x.argmax()),
    "new tensors": lambda x: (torch.zeros(3), torch.arange(3) + x, torch.full((2,), 3.0)),
}


@pytest.mark.parametrize("name", READS)
def test_reads_are_refused_with_their_place(name):
    with pytest.raises(HostReadError, match=r"in test_host_reads.py:\d+"), refused_host_reads():
        READS[name](torch.arange(1.0, 4.0))


@pytest.mark.parametrize("name", FREE)
def test_nothing_else_is(name):
    given = torch.arange(1.0, 4.0)
    with refused_host_reads():
        FREE[name](given)
