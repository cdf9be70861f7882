"""Where models and tokenizers come from, and how a run puts them together."""

from veto_pl.models.averaging import MovingAverage
from veto_pl.models.freezing import PartlyFrozen
from veto_pl.models.given import InMemory, InMemoryTokenizer
from veto_pl.models.initialisation import Pruned, RandomWeights
from veto_pl.models.loading import Gguf, Pretrained
from veto_pl.models.lora import Lora
from veto_pl.models.offloading import Offloaded
from veto_pl.models.student_base import StudentBase
from veto_pl.models.tokenizers import CharacterTokenizer, PretrainedTokenizer

__all__ = [
    "CharacterTokenizer",
    "Gguf",
    "InMemory",
    "InMemoryTokenizer",
    "Lora",
    "MovingAverage",
    "Offloaded",
    "PartlyFrozen",
    "Pretrained",
    "PretrainedTokenizer",
    "Pruned",
    "RandomWeights",
    "StudentBase",
]
