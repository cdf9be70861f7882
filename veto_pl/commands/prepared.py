"""What `fit` would build from a configuration, for commands that do something else with it."""

from __future__ import annotations

from veto_pl.cli.build import VetoCLI
from veto_pl.models.own_tokenizers import check_shared_ids
from veto_pl.seams import Models


class Prepared(VetoCLI):
    """Reads and builds exactly what `fit` does, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: nothing is trained, and no run folder is made."""

    def loaded(self, command: str) -> Models:
        """Load the models of the run, on the device of its trainer, for a command that has both read the same ids.

        Raises:
            ConfigurationError: the teacher reads ids of its own.
        """
        module = self.model
        self.datamodule.connect(module.tokenizer)
        with self.trainer.init_module():
            module.configure_model()
        models: Models | None = module.models
        assert models is not None, "`configure_model` has just loaded them"
        check_shared_ids(models.tokenizers, f"`veto-pl {command}`")
        for model in (models.student, models.required_teacher()):
            model.to(self.trainer.strategy.root_device)
        return models
