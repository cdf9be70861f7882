"""On-policy distillation of agents, with a curriculum of the depth of episodes."""

from dataclasses import dataclass, field
from typing import Literal

from veto_pl.core.bounds import Count
from veto_pl.environments import TryAgain
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.opd import OPD
from veto_pl.parts.schedules import Staircase
from veto_pl.rollouts import DecodeLoop, Played, Sampling
from veto_pl.seams import Engine, Environment, RolloutSource, Schedule

__all__ = ["TCOD"]


@dataclass(frozen=True, kw_only=True)
class TCOD(OPD):
    r"""Temporal curriculum: the student learns the first turns of episodes first, or the last, and then ever more.

    .. math:: A_t = \log p_T(y_t) - \log p_S(y_t) \text{ on the turns that are played}, \qquad
        k(n) = k_0 + \lfloor n / \eta \rfloor

    In step n the student plays the first k(n) turns (`front`), or an expert plays all but the last k(n) of its own and
    the student goes on (`back`). The KL of a student's own episodes grows with the turn, and early turns decide what
    later ones look like. Every turn weighs alike. A depth of at least `max_turns`, or of the expert's turns, is `OPD`
    on whole episodes.

    Departures: the paper writes a forward KL; its code takes the log-ratio of the sampled token, as here, with a
    clipping that never binds at one update per rollout. Its code shows a history of two turns, and behind an expert's
    turns a summary of them; here the student reads the whole dialogue. The mean over tokens that its code has in two of
    three environments is `aggregation: token`.

    Args:
        environment: what the student talks to; `back` needs one with an expert.
        sampling: of each turn.
        max_turns: of a whole episode.
        max_tokens: the longest completion of a row: all turns and replies.
        engine: what runs the student.
        depth: k, a number or a schedule.
        begin_at: `front` or `back`.
        aggregation: `turn` weighs every turn alike, `episode` every episode, `token` every token.

    References:
        arXiv 2604.24005
    """

    environment: Environment
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=512)
    max_turns: Count = 30
    max_tokens: Count = 4096
    engine: Engine = DecodeLoop()
    depth: Count | Schedule = Staircase(1, 2)
    begin_at: Literal["front", "back"] = "front"
    aggregation: Aggregation = "turn"
    rollout: RolloutSource = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        rollout = Played(
            self.environment, self.sampling, self.max_turns, self.max_tokens, self.engine, depth=self.depth,
            begin_at=self.begin_at,
        )  # fmt: skip
        object.__setattr__(self, "rollout", rollout)
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["TCOD", ...]:
        short, again = Sampling(max_new_tokens=6, stop=tuple("aeio")), TryAgain(said="no>")
        return (
            cls(environment=again, sampling=short, max_turns=3, max_tokens=64),
            cls(environment=again, sampling=short, max_turns=3, max_tokens=64, begin_at="back", depth=1),
        )
