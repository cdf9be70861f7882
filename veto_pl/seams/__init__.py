"""The seams: the abstract base classes that an algorithm is composed of, and their nouns. Read them first.

An implementation is a frozen dataclass. Its fields are its YAML, its docstring is its `--help`, and a class that has
been imported can be named in a config. Tensors follow one order, `(student_logp, target_logp)`. Implementations never
mask, reduce or detach: the objective that composes them does.

Legend: `B` rows, `P` prompt tokens, `C` completion tokens, `T` tokens of a whole row, `S = T - 1` predictions of a row,
`N` completion tokens of a batch, `V` vocabulary, `D` width. Position `t` of a row predicts token `t + 1`.
"""

from veto_pl.core.laws import Law
from veto_pl.core.mistakes import Mistake
from veto_pl.core.padding import pad_left, pad_right
from veto_pl.core.part import Part, Setup
from veto_pl.core.step import Step
from veto_pl.functional.stat import Stat
from veto_pl.seams.batches import Sequences
from veto_pl.seams.conversation import Conversation, Message, Rendering, Turn, text_of, with_text
from veto_pl.seams.data import Example, Judge, Reward, Task, Template
from veto_pl.seams.dialogue import Continuation, Dialogue
from veto_pl.seams.ending import Ending
from veto_pl.seams.engine_sessions import Session
from veto_pl.seams.environments import Environment, Episode, Reply
from veto_pl.seams.image_files import Picture
from veto_pl.seams.media import Media, media_of
from veto_pl.seams.models import LanguageModel, ModelSource, TeacherSource, TokenizerSource
from veto_pl.seams.objective import AnyObjective, Faults, LossOutput, Objective, TokenValues
from veto_pl.seams.panel import Panel, Reading, reading
from veto_pl.seams.playing import Line, PlayingSource
from veto_pl.seams.prompts import PromptBatch
from veto_pl.seams.rollouts import Engine, Models, Rollouts, RolloutSource, Writing
from veto_pl.seams.score_source import Answers, ScoreSource
from veto_pl.seams.teacher_context import TeacherContext
from veto_pl.seams.tokens import (
    Advantage,
    Divergence,
    Schedule,
    Support,
    Target,
    TokenGrid,
    TokenRows,
    TokenWeighting,
)

__all__ = [
    "Advantage",
    "Answers",
    "AnyObjective",
    "Continuation",
    "Conversation",
    "Dialogue",
    "Divergence",
    "Ending",
    "Engine",
    "Environment",
    "Episode",
    "Example",
    "Faults",
    "Judge",
    "LanguageModel",
    "Law",
    "Line",
    "LossOutput",
    "Media",
    "Message",
    "Mistake",
    "ModelSource",
    "Models",
    "Objective",
    "Panel",
    "Part",
    "Picture",
    "PlayingSource",
    "PromptBatch",
    "Reading",
    "Rendering",
    "Reply",
    "Reward",
    "RolloutSource",
    "Rollouts",
    "Schedule",
    "ScoreSource",
    "Sequences",
    "Session",
    "Setup",
    "Stat",
    "Step",
    "Support",
    "Target",
    "Task",
    "TeacherContext",
    "TeacherSource",
    "Template",
    "TokenGrid",
    "TokenRows",
    "TokenValues",
    "TokenWeighting",
    "TokenizerSource",
    "Turn",
    "Writing",
    "media_of",
    "pad_left",
    "pad_right",
    "reading",
    "text_of",
    "with_text",
]
