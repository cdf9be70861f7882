"""What a column is called, in which unit and which way is better: as the metrics of the run say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from veto_pl.metrics import Accuracy, PassCurve, SelfBLEU, TokenMetric
from veto_pl.report.columns import Quantity, Shown, in_order
from veto_pl.report.run import Run
from veto_pl.storage.journals import MetricsFile, describe_metrics

NAMES = st.text(st.characters(categories=["L"]), min_size=1, max_size=5)


class Surprise(TokenMetric):
    """A third party's metric."""

    name, title, unit, higher_is_better = "surprise", "surprise of the student", "bits", False

    def per_token(self, student_logp, teacher_logp):
        return student_logp[:, 0]


def shown(*metrics):
    return {name: Shown(**of) for name, of in describe_metrics({metric.name: metric for metric in metrics}).items()}


@pytest.mark.parametrize(
    ("metric", "column", "title", "label", "factor", "better"),
    [
        (Accuracy(), "greedy/accuracy", "Accuracy, greedy", "accuracy (%)", 100, 1),
        (Accuracy(), "validation/accuracy", "Validation: accuracy", "accuracy (%)", 100, 1),
        (PassCurve().members(4)[10], "sampled/pass@4_low", "Pass@4 low, sampled", "pass@4 low (%)", 100, 1),
        (SelfBLEU(), "sampled/self_bleu", "Self-BLEU, sampled", "self-BLEU (0 to 100)", 1, -1),
        (Surprise(), "greedy/surprise", "Surprise of the student, greedy", "surprise of the student (bits)", 1, -1),
        (Surprise(), "greedy/not_described", "Not described, greedy", "not described", 1, 0),
        (Surprise(), "train/loss", "Training: loss", "loss (nats/token)", 1, 0),
        (Surprise(), "train/seconds/rollout", "Time for rollout", "time for rollout (s)", 1, 0),
    ],
)
def test_titles_units_and_directions_are_those_of_the_metric(metric, column, title, label, factor, better):
    quantity = Quantity.of(column, shown(metric))
    assert (quantity.title, quantity.label, quantity.factor, quantity.better) == (title, label, factor, better)


@given(st.dictionaries(NAMES, st.builds(Shown, title=NAMES, unit=NAMES)), st.lists(NAMES))
def test_every_column_comes_once_and_described_ones_in_their_order(described, others):
    columns = [f"validation/{name}" for name in described] + [f"greedy/{name}" for name in others] + ["train/loss"]
    found = [quantity.column for quantity in in_order(reversed(columns), described)]
    assert found[: len(described) + 1] == ["train/loss", *columns[: len(described)]]
    assert sorted(found) == sorted(set(columns))


def test_a_run_says_how_its_metrics_are_shown(tmp_path):
    class Module(nn.Module):
        validation_metrics = nn.ModuleDict({"surprise": Surprise()})

    MetricsFile(str(tmp_path)).log_graph(Module())
    assert Run.read(tmp_path).shown == shown(Surprise())


def test_columns_that_differ_in_a_number_stand_in_its_order():
    columns = [f"train/{name}" for name in ("at_0", "at_0.1", "at_0.25", "at_0.5", "at_2", "turn_9", "turn_10")]
    assert [quantity.column for quantity in in_order(reversed(columns), {})] == columns
