"""Several teachers in the loss head: the dense formula in float64, and a count of its products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.chunked import RowStream
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.heads import FunctionHead, LinearHead, ScaleAndCap
from veto_pl.functional.panel_stream import PanelStream, Reader
from veto_pl.testing.dense import VocabularyProducts, dense_divergence

V, D = 11, 5
CAP = ScaleAndCap(0.5, 2.0)


def kernel(block):
    """The weighted reverse KL and its gradient."""
    student, teacher = torch.log_softmax(block.student, -1), torch.log_softmax(block.teacher, -1)
    losses, weight = reverse_kl(student, teacher), block.given["weight"]
    gap = student - teacher
    return {"loss": losses}, weight[:, None] * student.exp() * (gap - losses[:, None])


def models(rows, seed, dtype=torch.float64, count=2):
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        some(rows, D).requires_grad_(),
        some(V, D).requires_grad_(),
        [(some(rows, 7), some(V, 7)) for _ in range(count)],
    )


def scattered(rows, seed):
    """Which teacher speaks of which row, in any way at all, and how much."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, rows, generator=generator) < 0.6
    return [mask.nonzero()[:, 0] for mask in masks], torch.rand(2, rows, generator=generator, dtype=torch.float64)


def reader(hidden, head, places, cap=ScaleAndCap()):
    return Reader(hidden[places], LinearHead(head, scale_and_cap=cap), places, places)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 13), chunk=st.integers(1, 14), seed=st.integers(0, 99), capped=st.booleans())
def test_the_gradient_is_the_sum_over_the_teachers(rows, chunk, seed, capped):
    hidden, head, teachers = models(rows, seed)
    places, weights = scattered(rows, seed)
    cap = CAP if capped else ScaleAndCap()
    readers = [reader(*teacher, where, cap) for teacher, where in zip(teachers, places, strict=True)]
    student = LinearHead(head, scale_and_cap=cap)
    stream = PanelStream(hidden, student, readers, chunk_rows=chunk)
    beside = [{"weight": weight[where]} for weight, where in zip(weights, places, strict=True)]
    before = stream.scores(kernel, beside)
    scores, gradients = stream.gradients(kernel, beside)
    total = sum((part["loss"] * given["weight"]).sum() for part, given in zip(scores, beside, strict=True))
    gradients.attach(total, hidden, student).backward()
    found = [hidden.grad.clone(), head.grad.clone()]
    hidden.grad = head.grad = None
    expected = hidden.sum() * 0 + head.sum() * 0
    for (of_teacher, its_head), where, weight in zip(teachers, places, weights, strict=True):
        logits, theirs = cap(hidden[where] @ head.T), cap(of_teacher[where] @ its_head.T)
        expected = expected + dense_divergence(logits, theirs, reverse_kl, weights=weight[where])
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(found, (hidden.grad, head.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    for one, other in zip(before, scores, strict=True):
        torch.testing.assert_close(one["loss"], other["loss"])


def test_one_teacher_of_all_rows_is_a_row_stream_to_the_bit():
    hidden, head, [(other, other_head), _] = models(300, 1, torch.float32)
    weight = {"weight": torch.rand(300)}
    one = RowStream(hidden, LinearHead(head), other, LinearHead(other_head), chunk_rows=64).gradients(kernel, weight)
    readers = [Reader(other, LinearHead(other_head))]
    (scores,), gradients = PanelStream(hidden, LinearHead(head), readers, chunk_rows=64).gradients(kernel, [weight])
    assert torch.equal(one[0]["loss"], scores["loss"])
    assert torch.equal(one[1].hidden, gradients.hidden)
    assert torch.equal(one[1].parameters[0], gradients.parameters[0])


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_short_numbers_are_added_up_in_the_dtype_of_the_products(precision):
    hidden, head, teachers = models(40, 2, torch.float32)
    whole = torch.arange(40)
    with torch.autocast("cpu", precision):
        readers = [reader(*teacher, whole) for teacher in teachers]
        stream = PanelStream(hidden, LinearHead(head), readers, chunk_rows=16)
        scores, gradients = stream.gradients(kernel, [{"weight": torch.full((40,), 0.5)}] * 2)
    gradients.attach(sum(part["loss"].sum() for part in scores), hidden, LinearHead(head)).backward()
    found = hidden.grad.clone()
    hidden.grad = None
    sum(dense_divergence(hidden @ head.T, h @ w.T, reverse_kl) / 2 for h, w in teachers).backward()
    torch.testing.assert_close(found, hidden.grad, rtol=0.1, atol=0.1)


def test_a_head_that_is_a_function_keeps_its_graph_for_all_teachers():
    hidden, head, teachers = models(9, 3)
    layer = torch.nn.Linear(D, V, bias=False, dtype=torch.float64)
    layer.weight.data = head.detach().clone()
    as_function = FunctionHead(layer, list(layer.parameters()), V)
    places = [torch.tensor([0, 3, 4, 8]), torch.arange(9)]
    found = []
    for student in (as_function, LinearHead(head)):
        hidden.grad = None
        readers = [reader(*teacher, where) for teacher, where in zip(teachers, places, strict=True)]
        given_each = [{"weight": torch.ones(len(where))} for where in places]
        scores, gradients = PanelStream(hidden, student, readers, chunk_rows=4).gradients(kernel, given_each)
        gradients.attach(scores[0]["loss"].sum(), hidden, student).backward()
        found.append(hidden.grad.clone())
    torch.testing.assert_close(*found)
    torch.testing.assert_close(layer.weight.grad, head.grad)


@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (2, 1.0), (4, 1.0), (4, 0.25)])
def test_k_teachers_cost_their_own_products_and_the_students_three(count, share):
    """Logits of the student and two gradients, and for each teacher the logits of the rows that it speaks of."""
    rows = 64
    hidden, head, teachers = models(rows, 4, count=count)
    own = int(rows * share)
    places = [torch.arange(own) + (0 if share == 1 else own * k) for k in range(count)]
    readers = [reader(*teacher, where) for teacher, where in zip(teachers, places, strict=True)]
    beside = [{"weight": torch.ones(own, dtype=torch.float64)}] * count
    with VocabularyProducts(V) as products:
        PanelStream(hidden, LinearHead(head), readers, chunk_rows=16).gradients(kernel, beside)
    assert products.multiplications == 3 * rows * V * D + count * own * V * 7


def test_one_chunk_is_projected_once_for_two_passes():
    hidden, head, teachers = models(10, 5)
    places = [torch.arange(5), torch.arange(3, 10)]
    readers = [reader(*teacher, where) for teacher, where in zip(teachers, places, strict=True)]
    beside = [{"weight": torch.ones(len(where))} for where in places]
    stream = PanelStream(hidden, LinearHead(head), readers, chunk_rows=16)
    with VocabularyProducts(V) as products:
        stream.scores(kernel, beside)
        stream.gradients(kernel, beside)
    assert products.multiplications == 3 * 10 * V * D + 12 * V * 7


def test_a_teacher_with_other_rows_or_ids_is_refused():
    hidden, head, [(other, other_head), _] = models(7, 6)
    for wrong, ids, where in ((other[:6], other_head, None), (other, other_head[:10], None), (other, other_head, 3)):
        places = None if where is None else torch.arange(where)
        with pytest.raises(ValueError, match="Student and teacher must have the same rows and vocabulary"):
            PanelStream(hidden, LinearHead(head), [Reader(wrong, LinearHead(ids), places, places)])
