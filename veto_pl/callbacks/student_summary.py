"""What is trained, as a table at the start of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich import get_console
from rich.table import Table

LEFT_OUT = ("FLOPs",)
"""Columns that are not shown. Lightning counts operations of one forward call on an example, of which there is none."""


class StudentSummary(RichModelSummary):
    """Prints the parts of the module with their parameters and modes, and how many parameters are trained."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print the summary; Lightning calls it on the first rank."""
        shown = [(heading.strip(), cells) for heading, cells in summary_data if heading.strip() not in LEFT_OUT]
        table = Table(*(heading for heading, _ in shown))
        for row in zip(*(cells for _, cells in shown), strict=True):
            table.add_row(*row)
        trained, known = (get_human_readable_count(int(count)) for count in (trainable_parameters, total_parameters))
        table.caption = f"{trained} of {known} parameters are trained, {model_size:,.1f} MB"
        get_console().print(table)
