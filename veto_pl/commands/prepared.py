"""What `fit` would build from a configuration, for commands that do something else with it."""

from __future__ import annotations

from veto_pl.cli.build import VetoCLI
from veto_pl.models.own_tokenizers import check_shared_ids
from veto_pl.seams import Models
from veto_pl.seams.teacher_names import TEACHER


class Prepared(VetoCLI):
    """Reads and builds exactly what `fit` does, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: nothing is trained, and no run folder is made."""

    def loaded(self, command: str, teacher: str = TEACHER, *, own_ids: bool = False) -> Models:
        """Load the models of the run, the student and one teacher on the device of its trainer.

        Args:
            command: that asks, for messages.
            teacher: the name of the one teacher that the command sees.
            own_ids: it may read ids of its own.

        Raises:
            ConfigurationError: the teacher reads ids of its own.
        """
        module = self.model
        self.datamodule.connect(module.tokenizer)
        with self.trainer.init_module():
            module.configure_model()
        models: Models | None = module.models
        assert models is not None, "`configure_model` has just loaded them"
        alone = models.taught_by(teacher)
        if not own_ids:
            check_shared_ids([teacher] if teacher in models.tokenizers else [], f"`veto-pl {command}`")
        for model in (alone.student, alone.required_teacher()):
            model.to(self.trainer.strategy.root_device)
        return alone
