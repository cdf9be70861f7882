"""What a check has found."""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """One line.

    Args:
        name: of the check, and the case.
        word: PASS, FAIL or SKIP.
        ratio: what is judged; None where only running is.
        bound: what the ratio has to keep, in words.
        numbers: everything that was measured.
    """

    name: str
    word: str
    ratio: float | None = None
    bound: str = ""
    numbers: dict[str, object] = field(default_factory=dict)

    @classmethod
    def judged(
        cls,
        name: str,
        ratio: float,
        *,
        smoke: bool,
        least: float | None = None,
        most: float | None = None,
        **numbers: object,
    ) -> "Verdict":
        """PASS where the ratio keeps its bounds, which a smoke run does not apply."""
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", least), ("<=", most)) if bound is not None]
        kept = (least is None or ratio >= least) and (most is None or ratio <= most)
        told = " and ".join(bounds) + (" on a GPU" if smoke else "")
        return cls(name, "PASS" if kept or smoke else "FAIL", ratio, told, numbers)

    @classmethod
    def ran(cls, name: str, **numbers: object) -> "Verdict":
        """PASS for what only had to run."""
        return cls(name, "PASS", numbers=numbers)

    @classmethod
    def failed(cls, name: str, reason: str) -> "Verdict":
        return cls(name, "FAIL", numbers={"error": reason})

    @classmethod
    def skipped(cls, name: str, reason: str) -> "Verdict":
        return cls(name, "SKIP", numbers={"because": reason})

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f" ratio {self.ratio:.3g}" + (f" ({self.bound})" if self.bound else "")
        numbers = {name: round(n, 4) if isinstance(n, float) else n for name, n in self.numbers.items()}
        return f"{self.word} {self.name}{ratio} {json.dumps(numbers)}"
