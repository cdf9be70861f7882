"""An environment that gives rewards is enough: no verifier is asked for, and a reward that nobody gives is an error."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping

from tests.rollouts.test_played import Says
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.checks import check
from veto_pl.data import ExactMatch, JsonLines, PlainTemplate
from veto_pl.environments import Abacus, House, Levels, PythonTool, Tools
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import OPD, SOD, Sum
from veto_pl.rollouts import FromStudent, Mixture, Played, Replay, Sampling
from veto_pl.seams import Reply
from veto_pl.testing.tiny import ALPHABET, tiny_source

SAMPLING = Sampling(max_new_tokens=6, num_completions=2, stop=tuple("acegikmo"))


class Rewarded:
    """Tools with a reward of their own."""

    def get_reward(self) -> float:
        return 1.0

    def look(self) -> str:
        """Look around."""
        return "no"


def again(turn, seed):
    return Reply(({"role": "user", "content": "no>"},))


def playing(environment):
    return Played(environment, SAMPLING, max_turns=3, max_tokens=60, timeout=20.0)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "ab>", "completion": "ba"}\n{"prompt": "cd>", "completion": "dc"}\n' * 2)
    return JsonLines(train=str(path), validation=str(path))


def run_of(objective, task, **data):
    module = DistillationModule(
        objective, tiny_source(), tiny_source(seed=1), CharacterTokenizer(ALPHABET), evaluation=SAMPLING
    )
    return module, PromptDataModule(task, PlainTemplate(), batch_size=2, max_prompt_tokens=16, **data)


GIVES = {
    "an environment": (lambda: SOD(rollout=playing(Says(again, lambda: 1.0))), None),
    "replayed": (lambda: OPD(rollout=Replay(playing(Says(again)), capacity=8), reward_weight=0.5), None),
    "tools with a reward": (lambda: SOD(rollout=playing(Tools(f"{__name__}.Rewarded"))), None),
    "tools without": (lambda: SOD(rollout=playing(Abacus())), "`SOD` learns from rewards"),
    "programs": (lambda: SOD(rollout=playing(PythonTool(allow_code_execution=True))), "`SOD` learns from rewards"),
    "answers among episodes": (
        lambda: OPD(rollout=Mixture(playing(House()), FromStudent(SAMPLING)), reward_weight=0.5),
        "`OPD` learns from rewards",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVES)
def test_a_verifier_is_asked_for_where_no_environment_gives_rewards(name, task):
    objective, message = GIVES[name]
    module, data = run_of(objective(), task)
    if message is None:
        check(module, data, {"max_steps": 1})
        return
    with pytest.raises(ConfigurationError, match=message):
        check(module, data, {"max_steps": 1})
    check(module, run_of(objective(), task, reward=ExactMatch())[1], {"max_steps": 1})


@pytest.mark.parametrize("objective", [OPD(rollout=FromStudent(SAMPLING), reward_weight=0.5)])
def test_levels_alone_say_nothing_of_answers(objective):
    module, data = run_of(objective, Levels())
    with pytest.raises(ConfigurationError, match=r"verifier`: given `NoReward`"):
        check(module, data, {"max_steps": 1})


def trained(objective, task, tmp_path, **data):
    module, data = run_of(objective, task, **data)
    stopping = EarlyStopping("validation/accuracy", mode="max", patience=1, stopping_threshold=0.9)
    trainer = L.Trainer(
        max_steps=9, val_check_interval=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, callbacks=[stopping],
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def test_training_validation_and_early_stopping_go_by_the_environment(task, tmp_path):
    trainer = trained(SOD(rollout=playing(Says(again, lambda: 1.0))), task, tmp_path)
    assert trainer.callback_metrics["validation/accuracy"] == 1.0
    assert trainer.global_step < 9, "the threshold is reached at once"


def test_an_episode_without_a_reward_is_an_error_unless_somebody_judges(task, tmp_path):
    silent = SOD(rollout=playing(Says(again)))
    with pytest.raises(ConfigurationError, match=r"4 of 4 completions have none.*`Episode.reward`.*`data.reward`"):
        trained(silent, task, tmp_path)
    assert trained(silent, task, tmp_path, reward=ExactMatch()).global_step > 2
    summed = Sum(terms={"a": silent, "b": OPD(rollout=FromStudent(SAMPLING))})
    with pytest.raises(ConfigurationError, match="have none"):
        trained(summed, task, tmp_path)
