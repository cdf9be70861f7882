"""Tasks, templates, rewards and the data module."""

from veto_pl.data.collate import Collator
from veto_pl.data.datamodule import PromptDataModule
from veto_pl.data.rewards import ExactMatch, LastNumber, NoReward
from veto_pl.data.tasks.gsm8k import GSM8K
from veto_pl.data.tasks.jsonlines import JsonLines
from veto_pl.data.tasks.reasoning_gym import ReasoningGym
from veto_pl.data.templates import ChatTemplate, PlainTemplate

__all__ = [
    "GSM8K",
    "ChatTemplate",
    "Collator",
    "ExactMatch",
    "JsonLines",
    "LastNumber",
    "NoReward",
    "PlainTemplate",
    "PromptDataModule",
    "ReasoningGym",
]
