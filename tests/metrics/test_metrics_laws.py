"""What holds for every metric: the value belongs to the data, not to how the data came in."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import (
    COMPLETION_METRICS,
    METRICS,
    SAMPLES,
    TOKEN_METRICS,
    VOCABULARY,
    batches_of,
    join,
    log_probabilities,
    updated,
    value_of,
)
from torch import distributed
from torchmetrics import Metric

import veto_pl.metrics
from veto_pl.metrics import CompletionMetric, TokenMetric, TopKDiagnostic, default_metrics
from veto_pl.metrics.generations import Generations
from veto_pl.report.columns import Quantity, Shown
from veto_pl.storage.journals import describe_metrics
from veto_pl.testing.ranks import run_ranks

every_metric = pytest.mark.parametrize("name", METRICS)
every_light_metric = pytest.mark.parametrize("name", [name for name in METRICS if name != "bert_score"])
"""An encoder reads each pair of texts for `bert_score`, whose mean over rows is that of `rougeL`."""
quick = settings(deadline=None, max_examples=10)


def close(value):
    return pytest.approx(value, rel=1e-5, abs=1e-5)


@every_light_metric
@quick
@given(data=st.data())
def test_neither_the_order_of_a_batch_nor_its_splitting_matters(name, data):
    items = data.draw(batches_of(name))
    order, cut = data.draw(st.permutations(items)), data.draw(st.integers(1, len(items) - 1))
    assert value_of(name, order[:cut], order[cut:]) == close(value_of(name, items))


@pytest.mark.parametrize("name", sorted(COMPLETION_METRICS.keys() - {"bert_score"}))
@quick
@given(data=st.data())
def test_the_order_of_a_prompts_completions_does_not_matter(name, data):
    items = data.draw(batches_of(name))
    order = data.draw(st.permutations(range(len(items[0][0]))))
    shuffled = [tuple([field[i] for i in order] for field in prompt) for prompt in items]
    assert value_of(name, shuffled) == close(value_of(name, items))


@every_light_metric
@quick
@given(data=st.data())
def test_states_add_or_the_larger_one_counts(name, data):
    first, second = data.draw(batches_of(name)), data.draw(batches_of(name))
    one, other = updated(METRICS[name](), first), updated(METRICS[name](), second)
    merged = METRICS[name]()
    for state in merged._defaults:
        parts = torch.stack([getattr(one, state), getattr(other, state)])
        setattr(merged, state, merged._reductions[state](parts))
    assert float(merged.compute()) == close(value_of(name, first, second))


@every_light_metric
@quick
@given(data=st.data())
def test_forward_gives_the_value_of_its_batch_and_adds_it(name, data):
    first, second = data.draw(batches_of(name)), data.draw(batches_of(name))
    metric = updated(METRICS[name](), first)
    batch = (join(second),) if name in COMPLETION_METRICS else tuple(map(torch.stack, zip(*second, strict=True)))
    assert float(metric(*batch)) == close(value_of(name, second))
    assert float(metric.compute()) == close(value_of(name, first, second))


@every_metric
def test_nothing_is_zero_without_a_warning(name):
    metric = METRICS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(metric.compute()) == 0.0
        metric.reset()
        assert float(pickle.loads(pickle.dumps(metric)).compute()) == 0.0


@every_metric
def test_a_batch_without_rows_is_zero(name):
    metric = METRICS[name]()
    if name in COMPLETION_METRICS:
        nobody = torch.zeros(0, SAMPLES)
        metric.update(Generations([], [], nobody, nobody.bool(), logp=nobody))
    else:
        metric.update(torch.zeros(0, VOCABULARY), torch.zeros(0, VOCABULARY))
    assert float(metric.compute()) == 0.0


def fixed_items(name):
    """Four prompts, or seven tokens, the same in every process."""
    if name in COMPLETION_METRICS:
        tokens = [[[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 2, 2, 2], [5]], [[1], [], [2]]]
        tokens += [[[3, 4, 3, 4, 3, 4], [3, 4, 5, 0], [3]], [[0] * 6, [0, 1] * 3, [1, 2, 3, 4, 5]]]
        rewards = [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.25, 1.0, 0.0]]
        finished = [[True, False, True], [True, True, True], [False, False, True], [False, True, True]]
        return list(zip(tokens, rewards, finished, strict=True))
    generator = torch.Generator().manual_seed(7)
    student, teacher = (log_probabilities(generator, 7, excluded=(1,)) for _ in range(2))
    return list(zip(student, teacher, strict=True))


@every_metric
def test_metrics_survive_pickling_and_copying(name):
    metric = updated(METRICS[name](), fixed_items(name)[:2])
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        assert (twin.name, float(twin.compute())) == (name, float(metric.compute()))
        assert float(updated(twin, fixed_items(name)[2:]).compute()) == close(value_of(name, fixed_items(name)))


@every_metric
def test_metrics_go_on_after_inference_mode(name):
    items = fixed_items(name)
    metric = METRICS[name]()
    with torch.inference_mode():
        metric.reset()  # leaves states that nobody may change in place afterwards
    updated(metric, items[:1])
    assert float(updated(metric, items[1:]).compute()) == close(value_of(name, items))


@every_metric
def test_states_are_summed_in_double_precision(name):
    metric = METRICS[name]()
    assert metric._reductions
    for state, reduce in metric._reductions.items():
        assert reduce.__name__ == ("dim_zero_max" if state == "peak" else "dim_zero_sum")
        assert getattr(metric, state).dtype in (torch.float64, torch.int64)


def test_fixed_batches_tell_the_metrics_apart_from_zero():
    # Otherwise the comparison of two processes with one could not fail.
    assert [name for name in METRICS if value_of(name, fixed_items(name)) == 0.0] == []


def values_of_rank():
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    try:
        # Uneven shares: a mean of means would differ. `alone`: rank 0 saw nothing at all.
        shares = {name: fixed_items(name)[:1] if rank == 0 else fixed_items(name)[1:] for name in METRICS}
        values = {name: value_of(name, share) for name, share in shares.items()}
        alone = {name: value_of(name, *[fixed_items(name)] * rank) for name in METRICS}
    finally:
        distributed.destroy_process_group()
    return values, alone


def test_two_processes_agree_with_one():
    expected = {name: close(value_of(name, fixed_items(name))) for name in METRICS}
    for shared, alone in run_ranks(values_of_rank, 2):
        assert shared == expected
        assert alone == expected


@every_metric
def test_names_are_the_keys(name):
    metric = METRICS[name]()
    assert metric.name == name
    assert isinstance(metric, CompletionMetric if name in COMPLETION_METRICS else TokenMetric)


DIRECTIONS = {True: 1, False: -1, None: 0}


@every_metric
def test_the_report_shows_a_metric_as_its_class_says(name):
    metric = METRICS[name]()
    shown = {key: Shown(**of) for key, of in describe_metrics({name: metric}).items()}
    quantity = Quantity.of(f"validation/{name}", shown)
    assert quantity.better == DIRECTIONS[metric.higher_is_better]
    assert quantity.label.startswith(metric.title or name.replace("_", " "))
    assert quantity.factor == (100 if metric.unit == "%" else 1)
    assert metric.unit in quantity.label


def test_every_exported_metric_is_under_test():
    exported = {getattr(veto_pl.metrics, name) for name in veto_pl.metrics.__all__}
    classes = {c for c in exported if isinstance(c, type) and issubclass(c, Metric)} - {CompletionMetric, TokenMetric}
    assert {type(make()) for make in METRICS.values()} == classes


@pytest.mark.parametrize("base", [CompletionMetric, TokenMetric])
def test_the_families_are_abstract(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


@pytest.mark.parametrize(("samples", "powers"), [(1, []), (2, [2]), (3, [2]), (4, [2, 4]), (9, [2, 4, 8])])
def test_default_metrics_ask_for_no_more_completions_than_there_are(samples, powers):
    names = [metric.name for metric in default_metrics(samples)]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("pass@")] == [f"pass@{k}" for k in powers]
    for name in ("self_bleu", "vendi_2", "distinct_correct"):
        assert (name in names) == (samples > 1)
    diagnostics = {name for name, make in TOKEN_METRICS.items() if isinstance(make(), TopKDiagnostic)}
    assert set(TOKEN_METRICS) - set(names) == {"mean_ratio_0", "largest_ratio_0", "target_sharpness"} | diagnostics
