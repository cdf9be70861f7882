"""Environments: what an agent talks to, turn by turn."""

from veto_pl.environments.calculator import Abacus
from veto_pl.environments.house import House
from veto_pl.environments.levels import Levels
from veto_pl.environments.tools import Tools
from veto_pl.environments.try_again import TryAgain
from veto_pl.seams import Environment, Episode, Reply

__all__ = ["Abacus", "Environment", "Episode", "House", "Levels", "Reply", "Tools", "TryAgain"]
