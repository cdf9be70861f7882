"""Earlier paths of modules, which plug-ins and saved configurations name: they lead to where the modules are now."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PARTS = ("advantages", "contexts", "divergences", "schedules", "supports", "targets", "weightings")
MOVED = {f"veto_pl.{name}": f"veto_pl.parts.{name}" for name in PARTS} | {
    "veto_pl.callbacks.export": "veto_pl.callbacks.export_at_end",
    "veto_pl.clock": "veto_pl.training.clock",
    "veto_pl.evaluation": "veto_pl.training.evaluation",
    "veto_pl.fsdp": "veto_pl.training.fsdp",
    "veto_pl.generations": "veto_pl.metrics.generations",
    "veto_pl.judging.bounded_client": "veto_pl.servers.bounded_client",
    "veto_pl.judging.endpoint": "veto_pl.servers.endpoint",
    "veto_pl.laws": "veto_pl.core.laws",
    "veto_pl.logs": "veto_pl.storage.journals",
    "veto_pl.memory": "veto_pl.core.memory",
    "veto_pl.metrics.base": "veto_pl.metrics.metric_bases",
    "veto_pl.monitors": "veto_pl.callbacks.monitors",
    "veto_pl.normalisation": "veto_pl.training.normalisation",
    "veto_pl.objectives.base": "veto_pl.objectives.token_objective",
    "veto_pl.optimizers": "veto_pl.training.optimizers",
    "veto_pl.rollouts.interleaved": "veto_pl.rollouts.two_writers",
    "veto_pl.rollouts.sampling": "veto_pl.core.sampling",
    "veto_pl.sequences": "veto_pl.seams",
    "veto_pl.step": "veto_pl.core.step",
    "veto_pl.tokens": "veto_pl.seams",
    "veto_pl.types": "veto_pl.seams",
}


class MovedModules(MetaPathFinder, Loader):
    """Imports a module of `MOVED` from its new place: both paths give the same module, so the same classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an earlier path; None for all others."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new path in the place of this one, which the import system then returns."""
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Let the import system know the earlier paths."""
    sys.meta_path.append(MovedModules())
