"""A class that replaces another starts from its own defaults, wherever the two come from."""

import pytest

VETO = {
    "class_path": "Veto",
    "init_args": {
        "beta": 0.3,
        "temperature": 2.0,
        "divergence": {"class_path": "GeneralizedJSD", "init_args": {"beta": 0.9}},
        "rollout": {"class_path": "FromStudent", "init_args": {"sampling": {"temperature": 0.1}}},
    },
}


@pytest.fixture
def with_veto(config, write):
    config["model"]["objective"] = VETO
    config["model"]["teacher"] = config["model"]["student"]
    return write(config)


def test_config_and_option(with_veto, parse):
    objective = parse("--config", with_veto, "--model.objective", "GKD").model.objective
    assert objective.class_path == "veto_pl.objectives.GKD"
    assert (objective.init_args.beta, objective.init_args.lmbda, objective.init_args.temperature) == (0.5, 0.5, 1.0)


def test_config_and_config(with_veto, write, parse):
    later = write({"model": {"objective": {"class_path": "GKD"}}}, "later.yaml")
    objective = parse("--config", with_veto, "--config", later).model.objective
    assert (objective.init_args.beta, objective.init_args.temperature) == (0.5, 1.0)


def test_config_and_config_with_values_of_its_own(with_veto, write, parse):
    later = write({"model": {"objective": {"class_path": "GKD", "init_args": {"lmbda": 1.0}}}}, "later.yaml")
    objective = parse("--config", with_veto, "--config", later).model.objective
    assert (objective.init_args.lmbda, objective.init_args.beta, objective.init_args.temperature) == (1.0, 0.5, 1.0)


def test_default_and_option(config, write, parse):
    """`lr_schedule` has a default in the code."""
    schedule = parse("--config", write(config), "--model.lr_schedule", "Linear", "--model.lr_schedule.start", "3").model
    assert schedule.lr_schedule.init_args.as_dict() == {"start": 3.0, "end": 0.0}


def test_nested_default_and_option(config, write, parse):
    """`Veto.divergence` has a default in the code: `ForwardKL`."""
    config["model"]["objective"] = {"class_path": "Veto"}
    config["model"]["teacher"] = config["model"]["student"]
    objective = parse("--config", write(config), "--model.objective.divergence", "SkewKL").model.objective
    assert objective.init_args.divergence.init_args.as_dict() == {"alpha": 0.1}


def test_nested_config_and_option(with_veto, parse):
    changed = parse("--config", with_veto, "--model.objective.divergence", "SkewKL").model.objective.init_args
    assert changed.divergence.init_args.as_dict() == {"alpha": 0.1}
    assert (changed.beta, changed.temperature) == (0.3, 2.0), "the objective is the same class and keeps its values"


def test_nested_config_and_config(config, write, parse):
    config["model"]["objective"] = {
        "class_path": "Distill",
        "init_args": {"target": {"class_path": "GeometricBridge", "init_args": {"beta": 0.2}}},
    }
    config["model"]["teacher"] = config["model"]["student"]
    later = {"model": {"objective": {"init_args": {"target": {"class_path": "Teacher"}}}}}
    target = parse("--config", write(config), "--config", write(later, "later.yaml")).model.objective.init_args.target
    assert target.class_path == "veto_pl.parts.targets.Teacher"
    assert not target.get("init_args")


def test_terms_of_a_sum(config, write, parse):
    config["model"]["objective"] = {"class_path": "Sum", "init_args": {"terms": {"main": VETO}}}
    config["model"]["teacher"] = config["model"]["student"]
    later = {"model": {"objective": {"init_args": {"terms": {"main": {"class_path": "GKD"}}}}}}
    terms = parse("--config", write(config), "--config", write(later, "later.yaml")).model.objective.init_args.terms
    assert (terms["main"].init_args.beta, terms["main"].init_args.temperature) == (0.5, 1.0)


def test_the_same_class_keeps_what_was_set(with_veto, write, parse):
    later = write({"model": {"objective": {"class_path": "Veto", "init_args": {"beta": 0.7}}}}, "later.yaml")
    objective = parse("--config", with_veto, "--config", later).model.objective.init_args
    assert (objective.beta, objective.temperature) == (0.7, 2.0)


def test_options_after_the_change_hold(with_veto, parse):
    objective = parse(
        "--config", with_veto, "--model.objective", "GKD", "--model.objective.beta", "0.25"
    ).model.objective
    assert objective.init_args.beta == 0.25


def test_a_schedule_replaces_a_number_and_back(with_veto, write, parse):
    beta = {"class_path": "Cosine", "init_args": {"start": 0.5, "end": 0.1}}
    later = write({"model": {"objective": {"init_args": {"beta": beta}}}}, "later.yaml")
    scheduled = parse("--config", with_veto, "--config", later, "--model.objective.beta", "Linear",
                      "--model.objective.beta.start", "0.9").model.objective.init_args.beta  # fmt: skip
    assert scheduled.init_args.as_dict() == {"start": 0.9, "end": 0.0}
    assert (
        parse("--config", with_veto, "--config", later, "--model.objective.beta", "0.4").model.objective.init_args.beta
        == 0.4
    )


def test_the_original_behaviour_comes_back_outside():
    from jsonargparse import _typehints

    from veto_pl.cli.parsing import own_defaults

    before = _typehints.discard_init_args_on_class_path_change
    with own_defaults():
        assert _typehints.discard_init_args_on_class_path_change is not before
    assert _typehints.discard_init_args_on_class_path_change is before
