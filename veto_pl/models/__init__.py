"""Where models and tokenizers come from, and how a run puts them together."""

from veto_pl.models.averaging import MovingAverage
from veto_pl.models.initialisation import Pruned, RandomWeights
from veto_pl.models.loading import Gguf, Pretrained
from veto_pl.models.tokenizers import CharacterTokenizer, PretrainedTokenizer

__all__ = [
    "CharacterTokenizer",
    "Gguf",
    "MovingAverage",
    "Pretrained",
    "PretrainedTokenizer",
    "Pruned",
    "RandomWeights",
]
