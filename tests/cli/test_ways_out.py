"""Messages that once named a mistake and no way out of it, and settings that once were wrong without a word."""

import json
import warnings
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from veto_pl import checks
from veto_pl.callbacks import Checkpoints, Diagnostics
from veto_pl.cli.build import VetoCLI
from veto_pl.cli.parser_errors import explained, with_suggestion
from veto_pl.commands.main import main
from veto_pl.data import Chat, Rows
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.plugins import load_plugins
from veto_pl.storage.checkpoint_place import check_checkpoint

from .conftest import changed


def ended(content, write):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", write(content)])
    return str(end.value.code)


@pytest.fixture
def built(config, write):
    load_plugins()
    cli = VetoCLI(["--config", write(config)], run=False)
    return cli.model, cli.datamodule


@pytest.mark.parametrize("kind", [Checkpoints, EarlyStopping])
@pytest.mark.parametrize(
    ("metric", "right"), [("validation/accuracy", "max"), ("validation/student_entropy", None), ("train/loss", None)]
)
def test_the_worst_value_is_not_followed_without_a_word(kind, metric, right, built):
    """`min` is what callbacks begin with; of what no metric says, either is right."""
    wrong = {"max": "min", "min": "max"}.get(right)
    for mode in ("min", "max"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.check(*built, {}, callbacks={"checkpoint": kind(monitor=metric, mode=mode)})
        said = [str(one.message) for one in caught if "checkpoint.mode" in str(one.message)]
        assert len(said) == (mode == wrong)
        assert all(f"given `{wrong}`, with `{metric}`, expected `{right}`" in message for message in said)


def test_a_setting_that_nothing_resembles_is_answered_with_those_that_there_are(config, write):
    """GKD has `sampling`, and no `rollout`."""
    gkd = {"class_path": "GKD", "init_args": {"rollout": {"class_path": "FromStudent"}}}
    message = ended(changed(config, {"model.objective": gkd}), write)
    assert "`model.objective.init_args.rollout`: a setting that does not exist." in message
    assert "There are: " in message
    assert "lmbda" in message
    assert "sampling" in message


def test_a_text_for_a_setting_of_a_class_is_given_alone(config, write):
    """What the parser has read so far is no part of the value."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": "fast"}}
    message = ended(changed(config, {"model.optimizer": optimizer}), write)
    assert "`model.optimizer.init_args.lr`: given `fast`, expected a number" in message
    assert "Namespace" not in message


@pytest.mark.parametrize("name", ["DOPSD", "FlowMatching"])
def test_a_class_of_denoising_students_is_sent_to_their_command(name, config, write):
    message = ended(changed(config, {"model.objective": {"class_path": name}}), write)
    assert f"`{name}` belongs to denoising students: `veto-pl diffusion fit`" in message


def test_other_parser_messages_are_left_alone():
    assert with_suggestion("something else", ["model"]) == "something else"
    assert str(explained("Expected a <class 'int'>. Got value: two")) == "given `two`, expected a whole number."


@pytest.mark.parametrize("task", [Rows, Chat])
def test_a_bad_row_ends_with_what_to_do(task, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(['{"cut', json.dumps({"text": "no such field"})]) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* leave bad ones out by `on_bad_row: skip`\.$"):
        list(task(train=str(path)).load("train"))


def test_the_folder_of_a_run_is_answered_with_its_checkpoints(tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(ConfigurationError, match=f"There are: {last}"):
            check_checkpoint(str(given))


def test_probability_on_ids_without_a_token_is_answered_with_the_setting():
    """New weights have the ids that their architecture begins with, 32,000 of Llama."""
    callback, module = Diagnostics(), SimpleNamespace(logged={"train/discarded_mass": 0.989})
    with pytest.warns(UserWarning, match=r"Step 1: 98\.9% .* ids without a token.*`RandomWeights`.*`vocab_size`"):
        callback.on_train_batch_end(SimpleNamespace(global_step=1), module)


@pytest.mark.parametrize(
    ("option", "meant"),
    [("model.objectiv", "objective"), ("trainer.max_step", "max_steps"), ("data.batch_siz", "batch_size")],
)
def test_a_shortened_option_is_no_other_one(option, meant, config, write):
    with pytest.raises(SystemExit, match=f"`{option}`: a setting that does not exist. Did you mean `{meant}`"):
        main(["fit", "--config", write(config), f"--{option}", "1"])
