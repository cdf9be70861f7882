"""Inputs of the loss head, and its oracle in float64."""

import torch

from veto_pl.functional.chunked import linear_divergence
from veto_pl.testing.dense import dense_divergence


def inputs(rows=7, vocab=11, width=5, teacher_width=3, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (vocab, width), (rows, teacher_width), (vocab, teacher_width))
    made = [scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def dense(given, divergence, **options):
    hidden, head, other, other_head = (x.detach().double() for x in given)
    hidden.requires_grad_(), head.requires_grad_()
    total = dense_divergence(hidden @ head.T, other @ other_head.T, divergence, **options)
    return total.detach(), *torch.autograd.grad(total, (hidden, head))


def assert_equal_to_dense(given, divergence, tolerance=1e-12, chunk_rows=3, options=(), **formula):
    stat = linear_divergence(*given, divergence, chunk_rows=chunk_rows, **formula, **dict(options))
    stat.total.backward()
    expected = dense(given, divergence, **formula)
    for mine, theirs in zip((stat.total.detach(), given[0].grad, given[1].grad), expected, strict=True):
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm() + 1e-14
    given[0].grad = given[1].grad = None
