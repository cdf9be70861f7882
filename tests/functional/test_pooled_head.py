"""Teachers that are one, and ends that have two names: laws, and plain loops in float64."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.heads import LinearHead, ScaleAndCap
from veto_pl.functional.own_ends import Ends
from veto_pl.functional.pooled_head import PooledHead

quick = settings(deadline=None, derandomize=True, max_examples=40)
WIDTHS, IDS = [2, 3, 1], 5


def heads(seed, padding=0):
    generator = torch.Generator().manual_seed(seed)
    scales = [ScaleAndCap(), ScaleAndCap(0.5), ScaleAndCap(softcap=2.0)]
    return [
        LinearHead(
            torch.randn(IDS + padding, width, generator=generator, dtype=torch.float64),
            scale_and_cap=scale,
            vocab_size=IDS,
        )
        for width, scale in zip(WIDTHS, scales, strict=True)
    ]


def hidden(seed, rows=4):
    return torch.randn(rows, sum(WIDTHS), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def loops(parts, states, weights, pool):
    """The log-probabilities of the pooled teacher, id by id."""
    found = []
    for row in states.tolist():
        logits, at = [], 0
        for head, width in zip(parts, WIDTHS, strict=True):
            here, at = row[at : at + width], at + width
            raw = [sum(w * h for w, h in zip(line, here, strict=True)) for line in head.weight.tolist()[:IDS]]
            scale, cap = head.scale_and_cap.scale, head.scale_and_cap.softcap
            logits.append([scale * x if cap is None else cap * math.tanh(scale * x / cap) for x in raw])
        if pool == "logits":
            mass = [math.exp(sum(w * z[v] for w, z in zip(weights, logits, strict=True))) for v in range(IDS)]
        else:
            each = [[math.exp(x) / sum(math.exp(y) for y in z) for x in z] for z in logits]
            mass = [sum(w * p[v] for w, p in zip(weights, each, strict=True)) for v in range(IDS)]
        found.append([math.log(one / sum(mass)) for one in mass])
    return torch.tensor(found, dtype=torch.float64)


@given(seed=st.integers(0, 999), cuts=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0.1, 1)))
@quick
def test_a_mixture_against_plain_loops(seed, cuts):
    weights = [cut / sum(cuts) for cut in cuts]
    parts, states = heads(seed, padding=2), hidden(seed)
    mixed = PooledHead(parts, WIDTHS, weights, "mixture").forward(states)
    torch.testing.assert_close(mixed, loops(parts, states, weights, "mixture"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed.logsumexp(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 999), weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2)))
@quick
def test_pooled_logits_against_plain_loops(seed, weights):
    parts, states = heads(seed), hidden(seed)
    said = PooledHead(parts, WIDTHS, weights, "logits").forward(states).log_softmax(-1)
    torch.testing.assert_close(said, loops(parts, states, weights, "logits"), rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 999))
@quick
def test_it_writes_where_it_is_told_and_leaves_a_teacher_alone_that_is_alone(seed):
    parts, states = heads(seed), hidden(seed)
    pooled = PooledHead(parts, WIDTHS, [0.5, 0.3, 0.2], "mixture")
    out = torch.empty(4, IDS, dtype=torch.float64)
    assert torch.equal(pooled.forward(states, out), pooled.forward(states))
    assert torch.equal(out, pooled.forward(states))
    alone = PooledHead(parts[:1], WIDTHS[:1], [1.0], "mixture").forward(states[:, :2])
    torch.testing.assert_close(alone, parts[0].forward(states[:, :2]).log_softmax(-1))


ids = st.lists(st.integers(0, IDS - 1), min_size=1, max_size=3, unique=True).map(tuple)


@given(student=ids, teacher=ids, seed=st.integers(0, 999))
@quick
def test_ends_change_places_as_loops_say(student, teacher, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, IDS, generator=generator, dtype=torch.float64)
    written = torch.randint(IDS, (6,), generator=generator)
    kept = logits.clone()
    found = Ends(student, teacher).renamed(logits, written)
    assert torch.equal(logits, kept)
    for row, line, token in zip(found.tolist(), kept.tolist(), written.tolist(), strict=True):
        likeliest = max(teacher, key=lambda end: line[end])
        name = token if token in student else likeliest if likeliest in student else student[0]
        expected = list(line)
        expected[name], expected[likeliest] = line[likeliest], line[name]
        assert row == expected
        assert sorted(row) == sorted(line), "it is the same distribution, of the same outcomes"
        if token in student:
            assert row[token] == max(line[end] for end in teacher), "the teacher's end is scored"


def test_an_end_by_another_id_is_no_surprise():
    """The student has ended by id 0, the teacher is sure of its own end, id 3."""
    logits = torch.tensor([[-21.0, 0.0, 0.0, 9.0]])
    ends = Ends((0,), (3, 1))
    assert float(ends.renamed(logits, torch.tensor([0])).log_softmax(-1)[0, 0]) > -0.01
    assert float(logits.log_softmax(-1)[0, 0]) < -29
