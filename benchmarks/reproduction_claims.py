"""What the studies say about each claim. The rules of the verdicts were written before the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from reproduction_studies import CONDITIONS, MAIN, TASKS, lead

from veto_pl.compare.results import Comparison, Estimate
from veto_pl.compare.statistics import contrast
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.functional.targets import geometric_bridge

Found = Mapping[str, Comparison]
HOLDS, FAILS, UNTESTED = "holds here", "does not hold here", "cannot be tested here"
ACCURACY = "greedy/accuracy"
STEPS = 6000


@dataclass(frozen=True)
class Row:
    """A claim with what was found."""

    claim: str
    found: list[str]
    verdict: str


def above(comparison: Comparison, better: str, worse: str, quantity: str, factor: float = 1.0) -> tuple[str, bool]:
    """How much higher one method is, and whether the interval excludes 0."""
    values = {m: {t.seed: t.values[quantity] for t in comparison.of(m)} for m in (better, worse)}
    difference = contrast(values[better], values[worse], comparison.confidence).difference
    text = f"{better} minus {worse}: {interval(difference, factor)}"
    return text, difference.low > 0


def interval(of: Estimate, factor: float = 1.0) -> str:
    """Mean and interval as text."""
    return f"{factor * of.mean:+.3g} [{factor * of.low:+.3g}, {factor * of.high:+.3g}]"


def verdict(outcomes: Iterable[bool]) -> str:
    """A claim holds where every comparison says so; nothing was tried where there is none."""
    listed = list(outcomes)
    return UNTESTED if not listed else HOLDS if all(listed) else FAILS


def order(found: Found) -> Row:
    """SFT < supervised KD < on-policy KD < Veto in accuracy."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("order-")):
        values = [f"{m} {100 * found[name].estimates[m, ACCURACY].mean:.1f}" for m in MAIN]
        lines.append(f"{_of(name)}: {', '.join(values)} (%)")
        for worse, better in zip(MAIN, list(MAIN)[1:], strict=False):
            text, holds = above(found[name], better, worse, ACCURACY, 100)
            lines.append(f"{text} points{'' if holds else ' — not shown'}")
            outcomes.append(holds)
    return Row("1. SFT < supervised KD < on-policy KD < Veto in accuracy", lines, verdict(outcomes))


def suppression(found: Found) -> Row:
    """The ratio of teacher to student explodes, and the bridge suppresses it."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("order-")):
        trials = found[name].of("SFT")
        plain, veto = (max(t.values[f"greedy/largest_ratio_{beta}"] for t in trials) for beta in ("0", "0_8"))
        lines.append(f"{_of(name)}, after SFT: largest P_T/P_S 10^{plain:.1f}, largest Q/P_S at β 0.8 10^{veto:.1f}")
        outcomes.append(plain > 7 > veto)
    return Row("2. P_T/P_S exceeds 10^7 on tokens that the student does not know; Veto suppresses it", lines,
               verdict(outcomes))  # fmt: skip


def knob(found: Found) -> Row:
    """In reverse KL, the student's entropy falls with beta, step by step."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("reverse-")):
        comparison, quantity = found[name], "sampled/student_entropy"
        values = [f"{m}: {comparison.estimates[m, quantity].mean:.3f}" for m in comparison.methods]
        lines.append(f"{_of(name)}, entropy in nats: {', '.join(values)}")
        pairs = zip(comparison.methods, comparison.methods[1:], strict=False)
        outcomes += [above(comparison, less, more, quantity)[1] for less, more in pairs]
    return Row("3. In reverse KL, a larger β is more decisive, monotonically", lines, verdict(outcomes))


def decay(found: Found) -> Row:
    """A beta that decays linearly beats a constant one."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("order-") and "Veto constant" in found[n].methods):
        for decaying, constant in (("Veto", "Veto constant"), ("Veto 0.3", "Veto 0.3 constant")):
            text, holds = above(found[name], decaying, constant, ACCURACY, 100)
            lines.append(f"{_of(name)}: {text} points")
            outcomes.append(holds)
    return Row("4. Linear decay of β beats a constant β", lines, verdict(outcomes))


def sharpened(found: Found) -> Row:
    """The optimum is the teacher to the power 1 / (1 - beta), found by descent in float64."""
    lines, outcomes = [], []
    for divergence in (forward_kl, reverse_kl):
        worst = max(_distance_of_optimum(divergence, beta) for beta in (0.2, 0.5, 0.8))
        lines.append(f"{divergence.__name__}: largest distance to P_T^(1/(1-β)) after descent {worst:.1e}")
        outcomes.append(worst < 1e-4)
    return Row("5. The optimum sharpens the teacher by 1/(1-β)", lines, verdict(outcomes))


def _distance_of_optimum(divergence: Callable[..., torch.Tensor], beta: float) -> float:
    """Total variation between where descent on the loss ends, target detached, and the sharpened teacher."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(20, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logits = torch.zeros_like(teacher, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)  # a constant rate keeps circling
    for _ in range(STEPS):
        student = logits.log_softmax(-1)
        loss = divergence(student, geometric_bridge(teacher, student.detach(), beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimum = (teacher / (1 - beta)).softmax(-1)
    return float((logits.detach().softmax(-1) - optimum).abs().sum(-1).max() / 2)


def on_policy_data(found: Found) -> Row:
    """GKD: the more of the data is the student's own, the better."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("order-") and "GKD 0.5" in found[n].methods):
        for worse, better in (("supervised KD", "GKD 0.5"), ("GKD 0.5", "on-policy KD")):
            text, holds = above(found[name], better, worse, ACCURACY, 100)
            lines.append(f"{_of(name)}: {text} points")
            outcomes.append(holds)
    return Row("6a. GKD: accuracy rises with λ, the share of the student's own answers (0, 0.5, 1)", lines,
               verdict(outcomes))  # fmt: skip


def diversity(found: Found) -> Row:
    """MiniLLM: reverse KL costs some diversity against forward KL."""
    lines, outcomes = [], []
    for name in (n for n in found if n.startswith("order-") and "MiniLLM" in found[n].methods):
        for other in ("on-policy reverse KL", "MiniLLM"):
            text, holds = above(found[name], "on-policy KD", other, "sampled/student_entropy")
            lines.append(f"{_of(name)}: {text} nats of entropy")
            outcomes.append(holds)
    return Row("6b. Reverse KL (and MiniLLM) is less diverse than forward KL", lines, verdict(outcomes))


def paper_scale(found: Found) -> Row:
    """What needs the paper's models."""
    return Row(
        "7. The paper's figures (GSM8K 39.9, HumanEval 29.0 / 37.7, DialogSum 56.5)",
        ["Qwen2-7B and Qwen2-0.5B do not fit this scale; the recipes are in configs/recipes/paper"],
        UNTESTED,
    )


CLAIMS: tuple[Callable[[Found], Row], ...] = (
    order, suppression, knob, decay, sharpened, on_policy_data, diversity, paper_scale,
)  # fmt: skip


def lead_map(found: Found) -> list[str]:
    """Veto minus on-policy distillation in points of accuracy, under each condition."""
    caption = (
        "Accuracy of on-policy KD (%), then Veto minus on-policy KD in points, bold where the interval excludes 0:"
    )
    lines = [caption, "", "| condition | " + " | ".join(TASKS) + " |", "| :--- |" + " ---: |" * len(TASKS)]
    for condition in CONDITIONS:
        cells = []
        for task in TASKS:
            comparison = found.get(lead(task, condition).name)
            pair = None if comparison is None else comparison.contrasts.get(("Veto", ACCURACY))
            cells.append("not run" if pair is None else _cell(comparison, pair.difference))
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return lines


def _cell(comparison: Comparison, difference: Estimate) -> str:
    level = 100 * comparison.estimates[comparison.baseline, ACCURACY].mean
    mark = " **" if math.isfinite(difference.low) and difference.low * difference.high > 0 else " "
    return f"{level:.1f}{mark}{interval(difference, 100)}{mark.strip()}"


def _of(name: str) -> str:
    return ", ".join(name.split("-")[1:])
