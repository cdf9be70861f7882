"""veto_pl: distil language models with PyTorch Lightning.

`veto_pl.functional` is plain torch; importing it imports neither Lightning nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from veto_pl import moved

if TYPE_CHECKING:
    from veto_pl.data import PromptDataModule
    from veto_pl.module import DistillationModule

__version__ = "0.1.0"
__all__ = ["DistillationModule", "PromptDataModule", "__version__"]

moved.install()
_HOMES = {"DistillationModule": "veto_pl.module", "PromptDataModule": "veto_pl.data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
