"""How the numbers of a denoising training are shown; those of texts count tokens and nats."""

from __future__ import annotations

from dataclasses import dataclass

SQUARE = "mean square"


@dataclass(frozen=True)
class Told:
    """Title, unit and direction of a number.

    Args:
        title: what it is called.
        unit: of its values.
        higher_is_better: None where neither is.
    """

    title: str
    unit: str = ""
    higher_is_better: bool | None = None


TRAINED = {
    "train/loss": Told("loss", SQUARE),
    "train/velocity_error": Told("error of the velocity", SQUARE),
    "train/tokens": Told("states of a step"),
    "train/tokens_per_second": Told("throughput", "states/s"),
}
"""What the training loop logs of any denoising objective."""


def shown_at(t: float) -> Told:
    """Return how the part of the loss at one time of a grid is shown."""
    return Told(f"loss at t = {t:g}", SQUARE)
