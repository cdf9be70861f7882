"""Watches over objectives that extrapolate from a reference: how far they may go before structure is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from veto_pl.core.nested import changed, inside
from veto_pl.core.ranks import sum_over_ranks
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.chunked import Block
from veto_pl.functional.extrapolation import lambda_star, largest_lambda
from veto_pl.models.readout import row_scores
from veto_pl.objectives import ListOPD
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Models, Objective, PromptBatch, RolloutSource, Step
from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.run_folder import run_folder

EXTRAPOLATION = "extrapolation.json"
CHUNK_ROWS = 256
MIN_PROBABILITY = 1e-9


@dataclass(frozen=True)
class Structure:
    """One token of the structure: what both models make of it where the teacher prefers it.

    Args:
        token: as text.
        count: positions at which it was looked at.
        modal_probability: p, the teacher's mean probability of the token.
        warm_start_mass: b, the mean probability that the base gives it: the reference, or the student as it starts.
        bound: lambda*(p, b, c); infinite where the base is as sure as the teacher.
    """

    token: str
    count: int
    modal_probability: float
    warm_start_mass: float
    bound: float


class ExtrapolationMonitor(L.Callback):
    r"""Measures, before the first step, how far `ListOPD` may extrapolate, and acts where it is set to go further.

    The objective is a `ListOPD`, or holds one, as `Phases` may behind a fine-tuning.

    At the positions of a few validation rows where the teacher prefers a structural token, the mean probability p that
    the teacher gives it and the mean mass b that the base gives it bound the extrapolation by
    :math:`\lambda^*(p, b, c)`, c being `ListOPD.importance_cap`. The token with the smallest bound binds. All of it is
    written to `extrapolation.json` in the run folder.

    Args:
        structural: the tokens that make up the structure, as texts; None takes every token that the teacher is
            `certain` of, in the mean over the positions where it prefers it.
        certain: the mean probability from which on a token counts as structure where `structural` is None.
        prompts: validation rows that are looked at, on each rank; whole batches are.
        rollout: who writes the completions that are looked at.
        margin: lambda is held to (1 - margin) times the bound, and never below 1.
        action: `warn`, `cap` lambda for the run, or `stop` the run before it begins.

    Raises:
        ConfigurationError: the objective holds no `ListOPD`, or several; a number lies outside its range; there is no
            structural position; or the run is stopped.

    References:
        arXiv 2605.08737
    """

    def __init__(
        self,
        structural: list[str] | None = None,
        certain: float = 0.95,
        prompts: int = 64,
        rollout: RolloutSource = FromDataset(),
        margin: float = 0.02,
        action: Literal["warn", "cap", "stop"] = "warn",
    ) -> None:
        if not (0 < certain < 1 and 0 <= margin < 1 and prompts >= 1):
            raise ConfigurationError(
                "`ExtrapolationMonitor` needs `certain` in (0, 1), `margin` in [0, 1) and `prompts` of at least 1, got "
                f"{certain}, {margin} and {prompts}."
            )
        self.structural = structural
        self.certain = certain
        self.prompts = prompts
        self.rollout = rollout
        self.margin = margin
        self.action = action
        self.found: list[Structure] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Raise `ConfigurationError` unless the objective holds exactly one `ListOPD`."""
        _list_opd(pl_module.objective)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure, unless the checkpoint holds the measurement, and act if lambda exceeds its bound. Collective."""
        objective = _list_opd(pl_module.objective)
        if not self.found:
            batches = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
            sums = self._measure(batches, pl_module, objective.temperature)
            self.found = self._structures(sums, pl_module.models, objective.importance_cap)
        if not self.found:
            raise ConfigurationError(
                "`ExtrapolationMonitor` found no structural position in the validation rows. Name tokens that the "
                "completions hold in `structural`, or lower `certain`."
            )
        if missing := sorted(set(self.structural or ()) - {structure.token for structure in self.found}):
            rank_zero_warn(
                f"`ExtrapolationMonitor.structural` names {missing}, which the teacher prefers nowhere in the rows "
                "that were looked at: nothing bounds the extrapolation there."
            )
        self._write(trainer)
        binding = min(self.found, key=lambda structure: structure.bound)
        total = int(trainer.estimated_stepping_batches)
        highest = max(objective.extrapolation_at(Step(index, total)) for index in range(max(total, 1)))
        if highest > largest_lambda(binding.bound, self.margin):
            self._act(pl_module, objective, binding, highest)

    def state_dict(self) -> dict[str, Any]:
        """Return the measurement, which a resumed run cannot repeat, since its student is no longer the warm start."""
        return {"found": [asdict(structure) for structure in self.found]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurement."""
        self.found = [Structure(**values) for values in state_dict["found"]]

    def _act(self, pl_module: Any, objective: ListOPD, binding: Structure, highest: float) -> None:
        message = (
            f"`ListOPD.extrapolation` reaches {highest:.4g}, but {binding.token!r}, which the teacher writes with "
            f"probability {binding.modal_probability:.4g} and the base with {binding.warm_start_mass:.4g}, bounds it "
            f"by {binding.bound:.4g}. Beyond, the student may lose the structure."
        )
        allowed = f"{largest_lambda(binding.bound, self.margin):.4g}"
        if self.action == "stop":
            raise ConfigurationError(f"{message} Lower it to {allowed}.")
        rank_zero_warn(message + (f" It is capped at {allowed}." if self.action == "cap" else ""))
        if self.action == "cap":
            p, b = _open_interval(binding.modal_probability), _open_interval(binding.warm_start_mass)
            capped = replace(objective, modal_probability=p, warm_start_mass=b, margin=self.margin)
            pl_module.objective = changed(
                pl_module.objective, ListOPD, lambda part: capped if part == objective else part
            )

    def _measure(self, batches: Iterable[PromptBatch], pl_module: Any, temperature: float) -> Tensor:
        """Return [3, V] float64 sums by the teacher's preferred token: positions, p and b. Collective."""
        models, device, left = pl_module.models, pl_module.device, self.prompts
        sums = torch.zeros(3, models.student.vocab_size, dtype=torch.float64)
        for batch in batches:
            sums += _sums_by_preferred(batch.to(device), models, self.rollout, temperature)
            left -= len(batch)
            # Batches may differ in size between ranks, and sharded models need every rank.
            if not sum_over_ranks(torch.tensor(float(left > 0), device=device)):
                break
        return sum_over_ranks(sums.to(device)).cpu()

    def _structures(self, sums: Tensor, models: Models, cap: float | None) -> list[Structure]:
        counts, teacher, base = sums
        p, b = teacher / counts.clamp_min(1), base / counts.clamp_min(1)
        if self.structural is None:
            ids = ((counts > 0) & (p >= self.certain)).nonzero()[:, 0].tolist()
        else:
            ids = [i for i in counts.nonzero()[:, 0].tolist() if models.tokenizer.decode([i]) in self.structural]
        return [
            Structure(
                token=models.tokenizer.decode([i]),
                count=int(counts[i]),
                modal_probability=float(p[i]),
                warm_start_mass=float(b[i]),
                bound=_bound(float(p[i]), float(b[i]), cap),
            )
            for i in ids
        ]

    def _write(self, trainer: L.Trainer) -> None:
        file = run_folder(trainer) / EXTRAPOLATION  # every rank has to ask for the folder
        if not trainer.is_global_zero:
            return
        ordered = sorted(self.found, key=lambda structure: structure.bound)
        rows = [asdict(s) | {"bound": s.bound if math.isfinite(s.bound) else None} for s in ordered]
        with warn_if_unwritten(file, "keeps the measurement in its checkpoints"), replacing(file) as temporary:
            temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _list_opd(objective: Objective) -> ListOPD:
    """Return the objective's only `ListOPD`; raise `ConfigurationError` if it holds none or several."""
    found = list(dict.fromkeys(inside(objective, ListOPD)))
    if len(found) != 1:
        raise ConfigurationError(
            f"`ExtrapolationMonitor` watches over one `ListOPD`, got {len(found)} of them in "
            f"`{type(objective).__name__}`. Leave the callback out, or use that objective."
        )
    return found[0]


def _bound(p: float, b: float, cap: float | None) -> float:
    """Return lambda*(p, b, cap); infinite without a cap. Means of 0 or 1 are first moved inside (0, 1)."""
    return lambda_star(_open_interval(p), _open_interval(b), math.inf if cap is None else cap)


def _open_interval(probability: float) -> float:
    return min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)


def _sums_by_preferred(batch: PromptBatch, models: Models, rollout: RolloutSource, temperature: float) -> Tensor:
    """Return [3, V] float64 sums of one batch as `_measure` does, at the temperature of the loss."""
    sequences = rollout(batch, models, Step(0, 1, seed=-1))
    teacher, base = models.required_teacher(), models.reference or models.student

    def look(block: Block) -> tuple[dict[str, Tensor], None]:
        assert block.teacher is not None, "the stream has a teacher"
        logp = torch.log_softmax(block.teacher / temperature, -1).max(-1)
        ids, believed = logp.indices, torch.log_softmax(block.student / temperature, -1)
        mass = believed.gather(1, ids[:, None])[:, 0].exp()
        return {"id": ids.double(), "p": logp.values.exp().double(), "b": mass.double()}, None

    scores = row_scores(look, sequences, base, teacher, chunk_rows=CHUNK_ROWS)
    ids = scores["id"].long().cpu()
    columns = torch.stack([torch.ones(len(ids), dtype=torch.float64), scores["p"].cpu(), scores["b"].cpu()])
    return torch.zeros(3, models.student.vocab_size, dtype=torch.float64).index_add_(1, ids, columns)
