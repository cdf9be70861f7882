"""Mistakes in a configuration end the command with a sentence: where, what was given, what was expected, what to do."""

import copy
import dataclasses
import warnings
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.marks import fast
from veto_pl import checks
from veto_pl.cli.build import VetoCLI
from veto_pl.cli.compact_parser import ROOTS
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import loading
from veto_pl.objectives import SFT, Veto
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.storage import config_files
from veto_pl.storage.config_files import check_files, load

from .conftest import ABSENT, TINY_MODEL, changed

OBJECTIVE = "model.objective.init_args"
SAMPLING = f"{OBJECTIVE}.rollout.init_args.sampling"
DISTILLING = {
    "class_path": "Veto",
    "init_args": {"rollout": {"class_path": "FromStudent", "init_args": {"sampling": {"max_new_tokens": 4}}}},
}
TERMS = {"class_path": "Sum", "init_args": {"terms": {"a": {"class_path": "SFT"}, "b": {"class_path": "SFT"}}}}


@pytest.fixture
def distilling(config):
    teacher = copy.deepcopy(config["model"]["student"])
    teacher["init_args"]["seed"] = 1
    return changed(config, {"model.objective": DISTILLING, "model.teacher": teacher})


@pytest.fixture
def refused(write, tmp_path, monkeypatch, capsys):
    """The message that ends the command; no model is made and nothing is written."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("veto_pl.models.RandomWeights.load", load)
    monkeypatch.setattr(loading.Pretrained, "load", load)

    def run(content, *options, command="fit"):
        before = {path for path in tmp_path.rglob("*") if path.name != "config.yaml"}
        with pytest.raises(SystemExit) as ended:
            main([command, "--config", write(content), *options])
        assert {path for path in tmp_path.rglob("*") if path.name != "config.yaml"} == before
        message = str(ended.value.code)
        assert message.startswith("veto-pl: "), "a message makes the exit code 1"
        assert "usage:" not in message + capsys.readouterr().err
        assert len(message) < 1200
        return message

    return run


UNREADABLE = {
    "an unknown key at the top": ({"modle": {"a": 1}}, ["`modle`", "Did you mean `model`?"]),
    "an unknown key of the model": ({"model.techer": {"class_path": "SFT"}}, ["`model.techer`", "`teacher`"]),
    "an unknown key of the trainer": ({"trainer.max_stepss": 3}, ["`trainer.max_stepss`", "`max_steps`"]),
    "an unknown key of a callback": ({"samples.shwo": True}, ["`samples.shwo`", "`show`"]),
    "an unknown key of the task": ({"data.task.init_args.tran": "x"}, ["`data.task.init_args.tran`", "`train`"]),
    "an unknown key of a template": (
        {"data.template": {"class_path": "ChatTemplate", "init_args": {"sistem": "x"}}},
        ["`data.template.init_args.sistem`", "`system`"],
    ),
    "an unknown key of what may be null": (
        {"model.teacher": {"class_path": "Pretrained", "init_args": {"pth": "x"}}},
        ["`model.teacher.init_args.pth`", "`path`"],
    ),
    "an unknown key of an objective": ({f"{OBJECTIVE}.divergense": "x"}, [f"`{OBJECTIVE}.divergense`", "`divergence`"]),
    "an unknown key far down": ({f"{SAMPLING}.temprature": 1}, [f"`{SAMPLING}.temprature`", "`temperature`"]),
    "an unknown key of the optimizer": (
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"learning_rate": 1}}},
        ["`model.optimizer.init_args.learning_rate`", "lr"],
    ),
    "a text for a whole number": ({"data.batch_size": "eight"}, ["`data.batch_size`", "eight"]),
    "a text for a number": ({f"{SAMPLING}.top_p": "hot"}, [f"`{SAMPLING}.top_p`", "hot"]),
    "a list for a number": ({f"{SAMPLING}.top_p": [1]}, [f"`{SAMPLING}.top_p`", "[1]"]),
    "a text for a truth value": ({"samples.show": "perhaps"}, ["`samples.show`", "perhaps"]),
    "an unknown choice": ({"data.overlong": "dropp"}, ["`data.overlong`", "dropp", "'drop', 'truncate_left'"]),
    "a misspelt objective": ({"model.objective": {"class_path": "Vetto"}}, ["`Vetto`", "Did you mean `Veto`"]),
    # classes of other tests may be near as well
    "a misspelt class far down": (
        {f"{OBJECTIVE}.divergence": {"class_path": "FowardKL"}},
        [f"`{OBJECTIVE}.divergence`", "Did you mean `ForwardKL`"],
    ),
    "a misspelt term": (
        {"model.objective": {"class_path": "Sum", "init_args": {"terms": {"a": {"class_path": "MiniLLLM"}}}}},
        [f"`{OBJECTIVE}.terms`", "`MiniLLLM`", "Did you mean `MiniLLM`"],
    ),
    "a monitor that nobody measures": (
        {"model.objective": {"class_path": "DistiLLM"}, "model.metrics": [{"class_path": "Accuracy"}]},
        ["monitor", "`validation/forward_kl`", "There are validation/accuracy"],
    ),
    "a misspelt metric": ({"model.metrics": [{"class_path": "Accurcy"}]}, ["`model.metrics`", "`Accuracy`"]),
    "a misspelt callback": ({"trainer.callbacks": [{"class_path": "Exprt"}]}, ["`trainer.callbacks`", "`Export`"]),
    "a misspelt optimizer": ({"model.optimizer": {"class_path": "torch.optim.AdamWW"}}, ["`AdamWW`", "`AdamW`"]),
    "a class of another seam": (
        {"model.objective": {"class_path": "ForwardKL"}},
        ["`model.objective`", "`ForwardKL` is a Divergence, which does not belong here"],
    ),
    "a class of another seam by its full name": (
        {"model.objective": {"class_path": "veto_pl.parts.divergences.ForwardKL"}},
        ["`model.objective`", "ForwardKL` is a Divergence"],
    ),
    "a class of another seam far down": (
        {f"{OBJECTIVE}.divergence": {"class_path": "Linear"}},
        [f"`{OBJECTIVE}.divergence`", "`Linear` is a Schedule"],
    ),
    "a missing objective": ({"model.objective": ABSENT}, ["`model.objective`"]),
    "a missing file name": ({"data.task.init_args.train": ABSENT}, ["`data.task.init_args.train`"]),
    "a value out of range": ({f"{SAMPLING}.top_p": 0}, [f"`{SAMPLING}.top_p`", "0"]),
    "a size out of range": ({"data.batch_size": 0}, ["`data.batch_size`", "must be 1 or more, got 0"]),
    "a missing teacher": ({"model.teacher": None}, ["`model.teacher` is not set"]),
}


@pytest.mark.parametrize(
    "case",
    fast(
        UNREADABLE, "an unknown key at the top", "an unknown key far down", "an unknown key of the optimizer",
        "a text for a number", "an unknown choice", "a misspelt objective", "a misspelt term",
        "a monitor that nobody measures", "a class of another seam far down", "a missing objective",
        "a value out of range",
    ),
)  # fmt: skip
def test_a_mistake_is_named_by_its_path(case, distilling, refused):
    changes, parts = UNREADABLE[case]
    message = refused(changed(distilling, changes))
    for part in parts:
        assert part in message


def test_every_missing_setting_is_named_at_once(config, refused):
    message = refused({"trainer": config["trainer"]})
    for path in ("model.objective", "model.student", "data.task"):
        assert f"`{path}`" in message


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)
"""Nine lines for 387 million entries."""

FILES = {
    "broken": (b"model: [1,\n  a: {", ["line 2, column"]),
    "empty": (b"", ["an empty file"]),
    "only a comment": (b"# nothing\n", ["an empty file"]),
    "a list": (b"[1, 2]", ["list `[1, 2]`"]),
    "a text": (b"hello", ["str `hello`"]),
    "binary": (b"\x00\x01", ["cannot be read"]),
    "UTF-16": ("model: {}".encode("utf-16"), ["cannot be read"]),
    "a key twice": (b"model:\n  seed: 1\n  seed: 2\n", ["line 3", "`seed` stands twice"]),
    "a call of Python": (b"model: !!python/object/apply:os.mkdir ['pwned']", ["could not determine a constructor"]),
    "deep": (b"[" * 1500, ["cannot be read"]),
    "huge": (b"x" * 100_000, ["str `xxx"]),
    "a number as a key": (b"model:\n  1: 2\n", ["line 2, column 3", "`1`", "`int`"]),
    "nothing as a key": (b"model: {}\n~: 3\n", ["line 2, column 1", "`~`", "`null`"]),
    "a list as a key": (b"? [1]\n: 2\n", ["line 1", "`seq`"]),
    "aliases that multiply": (LAUGHS.encode(), ["line 6, column 4", "more than 100000 entries"]),
    "an alias of what it stands in": (b"data: &a [*a]", ["line 1, column 7", "stands inside of what it repeats"]),
    "such an alias farther down": (b"a: &a\n  b: {c: [*a]}", ["line 1, column 4", "stands inside"]),
    "such an alias merged": (b"a: &a\n  b:\n    <<: *a\n", ["line 1, column 4", "stands inside"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_configuration_is_named(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, parts = FILES[case]
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    for form in ("--config {}", "--config={}", "-c {}") if case == "empty" else ("--config {}",):
        with pytest.raises(ConfigurationError) as refusal:
            check_files(["fit", *form.format(path).split(" ")])
        message = str(refusal.value)
        assert all(part in message for part in [str(path)[-20:], *parts]), message
        assert len(message) < 600
    assert [p.name for p in tmp_path.iterdir()] == ["broken.yaml"], "nothing is executed"


def test_aliases_that_multiply_are_refused_wherever_a_file_is_read(tmp_path, config, write, refused):
    """Also in a file that an option or another file names."""
    (tmp_path / "part.yaml").write_text(LAUGHS)
    part = str(tmp_path / "part.yaml")
    assert "more than 100000 entries" in refused(config, "--model", part)
    assert "more than 100000 entries" in refused(changed(config, {"model.student": part}))


def size(value):
    """Entries of a value that is written out."""
    children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + sum(map(size, children))


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=30,
)


@given(TREES, st.integers(0, 4))
def test_sharing_changes_neither_what_is_read_nor_how_much_it_counts(tree, repeats):
    """Aliases count as often as they are repeated."""
    shared = {"a": tree, **{f"b{i}": tree for i in range(repeats)}}
    text = yaml.safe_dump(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_files, "NODES", size(shared))
        assert load(text) == shared
        patch.setattr(config_files, "NODES", size(shared) - 1)
        with pytest.raises(yaml.YAMLError, match="written out"):
            load(text)


@pytest.mark.parametrize("value", [5, None, [], "", True], ids=repr)
def test_a_group_needs_settings(value, config, write):
    groups = [name for name, cls in ROOTS.items() if cls is not None]
    for group in groups:
        with pytest.raises(ConfigurationError, match=f"`{group}`: given .* expected a mapping of settings"):
            check_files(["fit", "--config", write(changed(config, {group: value}))], groups)


def test_a_file_that_does_not_exist_is_named_with_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("nowhere.yaml", "."):
        with pytest.raises(SystemExit, match=rf"`--config`: given `{path}`.*It was sought in `.*{tmp_path.name}`"):
            main(["fit", "--config", path])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "given no command, expected one of .*fit"),
        (["fitt"], "given `fitt`.*Did you mean `fit`"),
        (["fit", "--model.objetive.x", "1"], "`model.objetive`.*Did you mean `objective`"),
        (["fit", "--model.objective"], "--model.objective: expected one argument"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


IMPOSSIBLE = {
    "FSDP1": ({"trainer.strategy": "fsdp"}, ["`trainer.strategy`", "FSDP1", "`fsdp2`"]),
    "DeepSpeed": ({"trainer.strategy": "deepspeed_stage_2"}, ["DeepSpeed", "Use `ddp`"]),
    "an unknown strategy": ({"trainer.strategy": "nope"}, ["`trainer`", "nope"]),
    "no such device": ({"trainer.accelerator": "tpu"}, ["`trainer`"]),
    "a sampler of Lightning's": ({"trainer.use_distributed_sampler": True}, ["`trainer.use_distributed_sampler`"]),
    "an endless run": ({"trainer.max_steps": -1, "trainer.max_epochs": -1}, ["`trainer`", "unlimited"]),
    "a window of nothing": ({"trainer.accumulate_grad_batches": 0}, ["`trainer.accumulate_grad_batches`", "1 or more"]),
    "a precision that rounds everything": (
        {"trainer.precision": "bf16-true"},
        ["`trainer.precision`: given `bf16-true`", "Set `dtype: bfloat16` on the models"],
    ),
    "several terms in half precision": (
        {"model.objective": TERMS, "trainer.precision": "16-mixed", "trainer.accumulate_grad_batches": 2},
        ["`trainer.accumulate_grad_batches`", "in 16-mixed, with 2 loss terms in `Sum`"],
    ),
    "MiniLLM in half precision": (
        {"model.objective": {"class_path": "MiniLLM", "init_args": {"sampling": {"max_new_tokens": 4}}},
         "trainer.precision": "16-mixed", "trainer.accumulate_grad_batches": 4},
        ["with 2 loss terms in `MiniLLM`"],
    ),
    "NaN in a weight of a sum": (
        {"model.objective": {"class_path": "Sum", "init_args": TERMS["init_args"] | {"weights": {"a": float("nan")}}}},
        ["`model.objective", "`Sum.weights` must be finite, got nan for 'a'"],
    ),
    "a schedule that leaves its range": (
        {f"{OBJECTIVE}.beta": {"class_path": "Linear", "init_args": {"start": 0.5, "end": -0.1}}},
        [f"`{OBJECTIVE}.beta`", "comes to -0."],
    ),
    "a probability that exceeds 1": (
        {"model.objective": {"class_path": "GKD", "init_args": {"sampling": {"max_new_tokens": 4}}},
         f"{OBJECTIVE}.lmbda": {"class_path": "Cosine", "init_args": {"start": 0, "end": 2}}},
        [f"`{OBJECTIVE}.lmbda`", "lie in [0, 1]"],
    ),
    "no references": (
        {"model.objective": {"class_path": "SFT"}, "data.task.init_args.completion": None},
        ["`data.task.init_args.completion`", "`FromDataset`"],
    ),
    "no references for a mixture": (
        {"model.objective": {"class_path": "GKD", "init_args": {"lmbda": 0.9, "sampling": {"max_new_tokens": 4}}},
         "data.task.init_args.completion": None},
        ["`data.task.init_args.completion`"],
    ),
    "no room for prompts": ({"data.max_prompt_tokens": 61}, ["`data.max_prompt_tokens`", "61", "at most 60", "64"]),
    "no room for answers": (
        {f"{SAMPLING}.max_new_tokens": 64}, [f"Lower `{SAMPLING}.max_new_tokens`", "the 64 positions of `model."],
    ),
    "no room for references": (
        {"model.objective": {"class_path": "SFT"}, "data.max_completion_tokens": 60}, ["`data.max_completion_tokens`"],
    ),
    "no room in the teacher": (
        {"model.teacher.init_args.dimensions.max_position_embeddings": 19}, ["the 19 positions of `model.teacher`"],
    ),
    "more ids than there are": (
        {f"{OBJECTIVE}.support": {"class_path": "TopK", "init_args": {"k": 9}}},
        [f"`{OBJECTIVE}.support.init_args.k`", "9 ids"],
    ),
    "more ids than there are in BRTS": (
        {"model.objective": {"class_path": "BRTS", "init_args": {
            "sampling": {"max_new_tokens": 4}, "teacher_sampling": {"max_new_tokens": 4, "num_completions": 2},
            "top_k": 64}}},
        [f"`{OBJECTIVE}.top_k`: given 64", "9 ids", "Lower it."],
    ),
    "no room for texts of two writers": (
        {"model.objective": {"class_path": "SKD", "init_args": {"sampling": {"max_new_tokens": 64}}}},
        [f"Lower `{OBJECTIVE}.sampling.max_new_tokens`"],
    ),
    "a learning rate below 0": (
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1}}},
        ["`model.optimizer`", "Invalid learning rate"],
    ),
    "a model that is not there": (
        {"model.student": {"class_path": "Pretrained", "init_args": {"path": "nowhere/at/all"}}},
        ["`model.student`", "No model could be read from `nowhere/at/all`"],
    ),
    "pass@k of too few": (
        {"model.metrics": [{"class_path": "PassAtK", "init_args": {"k": 4}}]},
        ["`model.evaluation.num_completions`", "pass@4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    fast(
        IMPOSSIBLE, "FSDP1", "an endless run", "several terms in half precision", "a schedule that leaves its range",
        "no references for a mixture", "no room for answers", "more ids than there are in BRTS",
        "a learning rate below 0", "a model that is not there", "pass@k of too few",
    ),
)  # fmt: skip
def test_combinations_that_cannot_work_are_found_before_a_model_is_made(case, distilling, refused):
    changes, parts = IMPOSSIBLE[case]
    message = refused(changed(distilling, changes))
    for part in parts:
        assert part in message


def test_all_mistakes_are_reported_at_once(distilling, refused):
    changes = {"trainer.strategy": "fsdp", "trainer.use_distributed_sampler": True, "data.max_prompt_tokens": 99}
    message = refused(changed(distilling, changes))
    assert message.startswith("veto-pl: The configuration has 3 mistakes:\n  - `trainer.strategy`")
    assert all(f"\n  - `{path}`" in message for path in changes)


@pytest.mark.parametrize("command", fast(("validate", "test", "predict"), "test"))
def test_the_other_commands_check_what_concerns_them(command, distilling, refused):
    for changes, part in [({"trainer.strategy": "fsdp"}, "FSDP1"), ({"data.max_prompt_tokens": 99}, "64 positions")]:
        assert part in refused(changed(distilling, changes), command=command)
    assert "8 for `model.evaluation" in refused(
        changed(distilling, {f"{SAMPLING}.max_new_tokens": 60, "data.max_prompt_tokens": 60,
                             "model.evaluation.max_new_tokens": 8}), command=command)  # fmt: skip


@pytest.fixture
def built(distilling, write):
    """Module and data module, without a run."""
    load_plugins()

    def build(changes=None):
        path = write(changed(distilling, changes or {}))
        cli = VetoCLI(["--config", path], run=False)
        return cli.model, cli.datamodule

    return build


def advice(module, data, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checks.check(module, data, {"devices": 1, **settings})
    return [str(warning.message) for warning in caught if "given" in str(warning.message)]


SUSPICIOUS = {
    "a greedy rollout": ({f"{SAMPLING}.temperature": 0.0}, f"`{SAMPLING}`: given greedy"),
    "greedy proposals": (
        {"model.objective": {"class_path": "SKD", "init_args": {
            "sampling": {"temperature": 0.0, "max_new_tokens": 4}, "teacher_sampling": {"max_new_tokens": 4},
        }}},
        "given greedy",
    ),
    "a rollout of the likeliest id": ({f"{SAMPLING}.top_k": 1}, f"`{SAMPLING}`: given greedy"),
    "the student as teacher": ({"model.teacher.init_args.seed": 0}, "the same source as `model.student`"),
    "the student's own average as teacher": (
        {"model.teacher": {"class_path": "MovingAverage", "init_args": {"source": TINY_MODEL}}},
        "the same source as `model.student`",
    ),
    "rewards without rivals": (
        {"model.objective": {"class_path": "OPD", "init_args": {
            "reward_weight": 0.5, "rollout": DISTILLING["init_args"]["rollout"]}},
         "data.task.init_args.verifier": {"class_path": "ExactMatch"}},
        "`OPD`, which compares the completions of a prompt",
    ),
    "self-BLEU of one": ({"model.metrics": [{"class_path": "SelfBLEU"}]}, "with the metric `SelfBLEU`"),
    "a vote of one": ({"model.metrics": [{"class_path": "MajorityVote"}]}, "with the metric `MajorityVote`"),
    "greedy copies": (
        {"model.evaluation.num_completions": 2, "model.evaluation.temperature": 0.0}, "Greedy completions of a prompt",
    ),
    "a teacher that nobody reads": (
        {"model.objective": {"class_path": "SFT"}, "model.metrics": [{"class_path": "Accuracy"}]},
        "a teacher for `SFT`, which reads none",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", fast(SUSPICIOUS, "greedy proposals", "the student as teacher", "rewards without rivals", "greedy copies")
)
def test_what_is_pointless_is_warned_of(case, built):
    changes, part = SUSPICIOUS[case]
    (message,) = advice(*built(changes))
    assert part in message


INNOCENT = {
    "a distillation": {},
    "a teacher that only measures": {"model.objective": {"class_path": "SFT"}},
    "the teacher's greedy completions": {
        "model.objective.class_path": "SeqKD",
        f"{OBJECTIVE}.rollout.class_path": "FromTeacher",
        f"{SAMPLING}.temperature": 0,
    },
    "prompts without references": {"data.task.init_args.completion": None},
    "GKD that never reads references": {
        "model.objective": {"class_path": "GKD", "init_args": {"lmbda": 1, "sampling": {"max_new_tokens": 4}}},
        "data.task.init_args.completion": None,
    },
    "a budget that just fits": {"data.max_prompt_tokens": 60},
    "infinity where it switches something off": {
        "model.objective": {"class_path": "EOPD", "init_args": {
            "tau": float("inf"), "importance_cap": float("inf"), "rollout": DISTILLING["init_args"]["rollout"]}}
    },
}  # fmt: skip


def test_who_follows_validations_needs_some(built):
    replay = {"class_path": "AdaptiveReplay", "init_args": {"student": DISTILLING["init_args"]["rollout"]}}
    parts = built({"model.objective": {"class_path": "DistiLLM", "init_args": {"rollout": replay}}})
    assert advice(*parts) == []
    (message,) = advice(*parts, limit_val_batches=0)
    assert "`trainer.limit_val_batches`: given 0" in message


@pytest.mark.parametrize("case", fast(INNOCENT, "a distillation", "the teacher's greedy completions"))
def test_what_can_work_is_left_alone(case, built):
    assert advice(*built(INNOCENT[case]), accumulate_grad_batches=2, strategy="ddp", max_steps=3) == []


def test_rewards_need_a_verifier(built):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class _Rewarded(SFT):
        needs_rewards = True

    module, data = built({"data.task.init_args.verifier": {"class_path": "NoReward"}})
    module.objective = _Rewarded()
    with pytest.raises(ConfigurationError, match=r"`data.task.init_args.verifier`: given `NoReward`.*`_Rewarded`"):
        checks.check(module, data, {})
    module, data = built()
    module.objective = _Rewarded()
    checks.check(module, data, {})


def test_checks_read_a_trainer_as_well_as_settings(built):
    module, data = built()
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "enable_model_summary": False}
    checks.check(module, data, Trainer(max_steps=3, use_distributed_sampler=False, **quiet))
    with pytest.raises(ConfigurationError, match="use_distributed_sampler"):
        checks.check(module, data, Trainer(max_steps=3, devices=2, strategy="ddp", **quiet))
    checks.check(module, data, Trainer(max_steps=3, **quiet))  # one process has nothing to distribute
    with pytest.raises(ConfigurationError, match="unlimited"):
        checks.check(module, data, Trainer(max_epochs=-1, use_distributed_sampler=False, **quiet))


def test_tensor_parallelism_and_a_scaler_for_shards_are_refused(built):
    module, data = built()
    with pytest.raises(ConfigurationError, match="tensor parallel"):
        checks.check(module, data, {"strategy": ModelParallelStrategy()})
    with pytest.raises(ConfigurationError, match=r"`trainer.precision`: given `16-mixed` with sharded"):
        checks.check(module, data, {"strategy": "fsdp2", "precision": "16-mixed"})


def test_every_configuration_of_the_checks_names_a_path_that_exists(built):
    """The walk along the objective gives the YAML's own paths."""
    module, data = built()
    assert isinstance(module.objective, Veto)
    paths = {path for path, _ in checks.RunSetup(module, data, {}).parts()}
    assert {f"{OBJECTIVE}.rollout", SAMPLING, f"{OBJECTIVE}.beta", f"{OBJECTIVE}.divergence"} <= paths
    assert FromStudent(Sampling(temperature=0.5, top_p=0.5, max_new_tokens=4)) == module.objective.rollout


def test_the_roots_are_what_a_configuration_can_hold(config, write):
    """`ROOTS` is written down by hand; a configuration has these keys and no others."""
    load_plugins()
    parsed = VetoCLI(["--config", write(config)], run=False).config
    assert set(parsed.as_dict()) - {"config"} == set(ROOTS) - {"ckpt_path", "weights_only"}
