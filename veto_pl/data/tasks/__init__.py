"""The tasks that come with the package."""

from veto_pl.data.tasks.code import MBPP, HumanEval
from veto_pl.data.tasks.conversations import Chat
from veto_pl.data.tasks.dialogsum import DialogSum
from veto_pl.data.tasks.gsm8k import GSM8K
from veto_pl.data.tasks.jsonlines import JsonLines
from veto_pl.data.tasks.mixed import DataSet, Mixed
from veto_pl.data.tasks.reasoning_gym import ReasoningGym
from veto_pl.data.tasks.rows import Rows

__all__ = ["GSM8K", "MBPP", "Chat", "DataSet", "DialogSum", "HumanEval", "JsonLines", "Mixed", "ReasoningGym", "Rows"]
