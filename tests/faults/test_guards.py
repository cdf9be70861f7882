"""Guards: bounds on logged numbers, with patience, that act alike on all ranks and after a resume."""

import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from cli.conftest import tiny_config, veto_pl
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.callbacks import Guard, Guards
from veto_pl.callbacks.guards import DEFAULTS
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import EosRate, RepetitionRate
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.seams import Sequences
from veto_pl.testing.ranks import run_ranks

from .explosions import STEPS, prepare, train_all

EOS = 1


def guard(**settings):
    return Guard(**{"metric": "entropy", "reason": "It collapsed.", "patience": 1, **settings})


class Feed:
    """Steps that log what they are given."""

    def __init__(self, callback, step=0):
        self.callback = callback
        self.trainer = SimpleNamespace(
            global_step=step,
            should_stop=False,
            strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision),
        )
        callback.on_train_start(self.trainer, None)

    def __call__(self, value, name="train/entropy"):
        """Whether the guard acted."""
        self.trainer.global_step += 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.callback.on_train_batch_end(self.trainer, SimpleNamespace(logged={name: value}))
        return len(caught) > 0


VALUES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan]), max_size=30)


@given(VALUES, st.integers(1, 5), st.sampled_from([0.5, 1.5, 2.5]))
def test_it_acts_once_after_as_many_steps_in_a_row_as_its_patience(values, patience, bound):
    feed = Feed(Guards([guard(above=bound, patience=patience)]))
    acted = [feed(value) for value in values]
    seen = [(i, value > bound) for i, value in enumerate(values) if not math.isnan(value)]
    runs = [i for n, (i, _) in enumerate(seen, 1) if n >= patience and all(b for _, b in seen[n - patience : n])]
    assert [i for i, act in enumerate(acted) if act] == runs[:1]


@given(VALUES, st.integers(0, 30), st.integers(1, 4), st.sampled_from([None, 1, 4]))
def test_a_resumed_run_acts_when_an_uninterrupted_one_does(values, cut, patience, of_first):
    rules = [guard(above=1.0 if of_first else 1.5, patience=patience, of_first=of_first)]
    whole = Feed(Guards(rules))
    expected = [whole(value) for value in values]
    first = Feed(Guards(rules))
    acted = [first(value) for value in values[:cut]]
    second = Guards(rules)
    second.load_state_dict(json.loads(json.dumps(first.callback.state_dict())))
    resumed = Feed(second, step=cut)
    assert acted + [resumed(value) for value in values[cut:]] == expected


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.floats(0, 30))
def test_a_relative_bound_is_a_multiple_of_the_mean_of_the_first_steps(start, value):
    feed = Feed(Guards([guard(below=0.5, of_first=3)]))
    assert not any([feed(start[0]), feed(math.nan), feed(start[1]), feed(start[2])])
    assert feed(value) == (value < 0.5 * sum(start) / 3)


def test_micro_batches_between_steps_are_not_steps():
    feed = Feed(Guards([guard(above=0.5, patience=2)]))
    assert not feed(1.0)
    feed.trainer.global_step -= 1
    assert not feed(1.0)
    assert feed(1.0)


@pytest.mark.parametrize(
    ("metric", "logged", "watched"),
    [
        ("entropy", "train/entropy", True),
        ("entropy", "train/kd/entropy", True),
        ("train/entropy", "train/entropy", True),
        ("kd/entropy", "train/kd/entropy", True),
        ("kd/entropy", "train/entropy", False),
        ("entropy", "train/cross_entropy", False),
    ],
)
def test_a_metric_is_named_by_its_end(metric, logged, watched):
    assert guard(metric=metric, above=0.5).watches(logged) == watched
    assert Feed(Guards([guard(metric=metric, above=0.5)]))(1.0, logged) == watched


def test_a_stop_says_why_and_gives_a_resumed_run_its_patience_again():
    callback = Guards([guard(above=0.5, patience=2)], action="stop")
    feed = Feed(callback)
    assert not feed(1.0)
    assert not feed.trainer.should_stop
    assert feed(1.0)
    assert feed.trainer.should_stop
    assert callback.stopped == "step 2: `train/entropy` is 1, above 0.5 for 2 steps in a row. It collapsed."
    again = Guards([guard(above=0.5, patience=2)], action="stop")
    again.load_state_dict(callback.state_dict())
    resumed = Feed(again, step=2)
    assert [resumed(1.0), resumed(1.0)] == [False, True]


def test_a_guards_own_action_comes_first():
    warning, stopping = (
        Feed(Guards([guard(above=0.5, action=a)], action=b)) for a, b in (("warn", "stop"), ("stop", "warn"))
    )
    assert warning(1.0)
    assert stopping(1.0)
    assert (warning.trainer.should_stop, stopping.trainer.should_stop) == (False, True)


@pytest.mark.parametrize(
    "settings",
    [{}, {"below": 1.0, "above": 2.0}, {"above": 1.0, "patience": 0}, {"above": 1.0, "of_first": 0}],
)
def test_a_guard_that_cannot_work_is_refused(settings):
    with pytest.raises(ConfigurationError, match="guard of `entropy`"):
        guard(**settings)


COLLAPSES = {
    "repetition": ([0.1] * 30, [0.9] * 25),
    "unfinished": ([0.2] * 30, [1.0] * 120),
    "completion_length": ([40.0] * 30, [3.0] * 25),
    "selected": ([0.5, 0.0] * 15, [0.0] * 25),
    "entropy": ([2.0] * 30, [0.001] * 60),
    "agreement": ([0.6] * 30, [0.2] * 60),
}


@pytest.mark.parametrize("metric", COLLAPSES)
def test_the_default_guards_see_each_collapse_and_nothing_in_a_healthy_run(metric):
    healthy, collapsed = COLLAPSES[metric]
    feed = Feed(Guards())
    assert not any(feed(value, f"train/{metric}") for value in healthy * 5)
    assert sum(feed(value, f"train/{metric}") for value in collapsed) == 1
    assert not feed.trainer.should_stop, "by default it only warns"


def test_default_guards_have_names_that_the_log_has(tmp_path):
    (run,) = train_all(
        [{"case": "teacher", "rows": prepare(tmp_path, steps=STEPS[:1]), "folder": str(tmp_path), "steps": 1}]
    )
    for rule in DEFAULTS:
        # The student wrote nothing here, and the objective leaves nothing out.
        if rule.metric not in ("repetition", "unfinished", "selected"):
            assert any(rule.watches(name) for name in run["log"][0]), rule.metric


class OnOneRank(L.Callback):
    """A number that only the second rank sees beyond the bound."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.logged = pl_module.logged | {
            "train/entropy": 1.0 if trainer.global_rank and trainer.global_step == 2 else 0.0
        }


def stop_one_of_two(folder, rows):
    """Steps done on this rank."""
    callbacks = [OnOneRank(), Guards([guard(above=0.5, action="stop")])]
    case = {"case": "backbone", "rows": rows, "folder": folder, "steps": 6, "batch_size": 2, "strategy": "ddp"}
    return train_all([case | {"callbacks": callbacks}])[0]["steps"]


@pytest.mark.xdist_group("ranks")
def test_ranks_stop_together(tmp_path):
    rows = prepare(tmp_path, steps=STEPS[:1] * 6)
    assert run_ranks(stop_one_of_two, 2, str(tmp_path), rows, timeout=120) == [2, 2]


def rollout(completions, student=None):
    """Rows of a prompt of two tokens and a completion each, right-padded."""
    width = 2 + max(map(len, completions))
    ids = torch.zeros(len(completions), width, dtype=torch.int64)
    loss_mask = torch.zeros(len(completions), width, dtype=torch.bool)
    for row, tokens in enumerate(completions):
        ids[row, 2 : 2 + len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        loss_mask[row, 2 : 2 + len(tokens)] = True
    on_policy = torch.tensor([True] * len(completions) if student is None else student)
    attention_mask = loss_mask.clone()
    attention_mask[:, :2] = True
    return Sequences(ids, attention_mask, loss_mask, torch.arange(len(completions)), on_policy)


TOKENS = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5)


def generations(completions, finished):
    shape = (len(completions), 1)
    return Generations([""] * len(completions), completions, torch.zeros(shape), torch.tensor(finished).reshape(shape))


@given(TOKENS)
def test_repetition_is_that_of_the_validation_metric(completions):
    stat = rollout_numbers([rollout(completions)], [EOS])["repetition"]
    metric = RepetitionRate(4)
    metric.update(generations(completions, [True] * len(completions)))
    assert stat.weight == sum(len(tokens) >= 4 for tokens in completions)
    if stat.weight:
        assert float(stat.mean()) == pytest.approx(float(metric.compute()), abs=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.integers(2, 6))
def test_unfinished_completions_are_those_that_ran_into_the_limit(ended, limit):
    completions = [[2] * (limit - 2) + [EOS] if end else [2] * limit for end in ended]
    stat = rollout_numbers([rollout(completions)], [EOS])["unfinished"]
    metric = EosRate()
    metric.update(generations(completions, ended))
    assert float(stat.mean()) == pytest.approx(1 - float(metric.compute()))


@given(TOKENS)
def test_numbers_add_up_over_rows_and_leave_out_what_the_student_did_not_write(completions):
    rows = rollout(completions)
    alone = rollout_numbers([rows], [EOS])["repetition"]
    foreign = replace(rows, on_policy=torch.zeros_like(rows.on_policy))
    together = rollout_numbers([rows, foreign, rows], [EOS])["repetition"]
    assert together.weight == 2 * alone.weight
    assert float(together.total) == pytest.approx(2 * float(alone.total), abs=1e-6)
    assert all(stat.weight == 0 for stat in rollout_numbers([foreign], [EOS]).values())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An on-policy run that a guard ends at its third of eight steps, through the command."""
    folder = tmp_path_factory.mktemp("guarded")
    config = tiny_config(folder)
    teacher = config["model"]["student"]["init_args"] | {"seed": 1}
    sampling = {"class_path": "FromStudent", "init_args": {"sampling": {"max_new_tokens": 4}}}
    config["model"] |= {"objective": {"class_path": "Veto", "init_args": {"rollout": sampling}}}
    config["model"]["teacher"] = {"class_path": "RandomWeights", "init_args": teacher}
    config["trainer"] |= {"max_steps": 8, "val_check_interval": 8}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    (folder / "guards.yaml").write_text(
        yaml.safe_dump(
            {"guards": {"guards": [{"metric": "entropy", "above": 0.0, "patience": 3, "reason": "It is a test."}]}}
        )
    )
    return folder


def weights(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    return state["global_step"], state["state_dict"]


@pytest.mark.slow
def test_the_command_stops_cleanly_and_goes_on_where_it_stopped(guarded):
    files = ["--config", guarded / "config.yaml", "--config", guarded / "guards.yaml"]
    done = veto_pl("fit", *files, "--guards.action", "stop")
    assert done.returncode == 0, done.stderr
    assert "above 0 for 3 steps in a row. It is a test. The run stops here, at step 3." in done.stderr
    run = guarded / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["stopped"].startswith("step 3: `train/entropy` is ")
    assert (run / "export" / "model.safetensors").is_file()
    assert weights(run)[0] == 3
    resumed = veto_pl("fit", *files, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert resumed.returncode == 0, resumed.stderr
    assert "stopped" not in json.loads((run / "summary.json").read_text())
    whole = veto_pl("fit", *files, "--run_dir", guarded / "whole")
    assert whole.stderr.count("It is a test.") == 1
    (step, first), (_, second) = weights(run), weights(guarded / "whole")
    assert step == 8
    assert all(torch.equal(first[name], second[name]) for name in first)
