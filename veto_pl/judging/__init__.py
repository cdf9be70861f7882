"""Judges that compare two answers, and how often one set of answers wins."""

from veto_pl.judging.chat import ChatJudge
from veto_pl.judging.preferences import NoVerdictError, Pair, Verdict, ask, ask_all
from veto_pl.judging.rates import HeadToHead, wilson, win_rate
from veto_pl.judging.reference import ReferenceJudge

__all__ = [
    "ChatJudge",
    "HeadToHead",
    "NoVerdictError",
    "Pair",
    "ReferenceJudge",
    "Verdict",
    "ask",
    "ask_all",
    "wilson",
    "win_rate",
]
