"""Environments: what an agent talks to, turn by turn."""

from veto_pl.environments.calculator import Abacus
from veto_pl.environments.gymnasium_games import Gymnasium
from veto_pl.environments.house import House
from veto_pl.environments.levels import Levels
from veto_pl.environments.mcp_servers import Mcp
from veto_pl.environments.open_env import OpenEnv
from veto_pl.environments.python_tool import PythonTool
from veto_pl.environments.textworld_games import TextWorld
from veto_pl.environments.tool_replies import CallFailedError
from veto_pl.environments.tools import Tools
from veto_pl.environments.try_again import TryAgain
from veto_pl.seams import Environment, Episode, Reply

__all__ = [
    "Abacus",
    "CallFailedError",
    "Environment",
    "Episode",
    "Gymnasium",
    "House",
    "Levels",
    "Mcp",
    "OpenEnv",
    "PythonTool",
    "Reply",
    "TextWorld",
    "Tools",
    "TryAgain",
]
