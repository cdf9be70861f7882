"""The writing side: a teacher runs once over the rows of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.data.collate import Collator, Encoded
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.models.modes import sampling_mode
from veto_pl.offline.cost import TruncationCost
from veto_pl.offline.fingerprint import model_fingerprint, row_key, tokenizer_fingerprint
from veto_pl.offline.manifest import NAME, Identity, Manifest, Shard
from veto_pl.offline.shards import ScoredRow, ShardReader, verify, write_shard
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Models, Step

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Asks teacher and student about reference completions.

    Args:
        models: both models, on `device`.
        collator: pads the rows.
        k: ids kept per token, below the vocabulary's size.
        temperature: divides the logits of both models, as in the loss.
        batch_size: rows per forward pass.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time.
        device: where the models are.
        precision: makes the context of a forward pass, such as autocast.

    Raises:
        ConfigurationError: `k` is out of range, or there is no teacher.
    """

    models: Models
    collator: Collator
    k: int
    temperature: float = 1.0
    batch_size: int = 8
    chunk_rows: int = 2048
    device: torch.device = torch.device("cpu")
    precision: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)

    def __post_init__(self) -> None:
        vocabulary = self.models.required_teacher().vocab_size
        if not 1 <= self.k < vocabulary:
            raise ConfigurationError(
                f"`--k` must lie between 1 and {vocabulary - 1}, one less than the vocabulary's {vocabulary} ids, got "
                f"{self.k}. With {vocabulary - 1} nothing is lost."
            )

    def identity(self) -> Identity:
        """Return what all scores of this scorer have in common; every weight of the teacher is read and hashed."""
        teacher = model_fingerprint(self.models.required_teacher().model)
        return Identity(
            teacher, tokenizer_fingerprint(self.models.tokenizer), self.k, self.temperature, sampled_logp=True
        )

    def score(self, rows: Sequence[Encoded]) -> tuple[list[ScoredRow], TruncationCost]:
        """Return the teacher's scores of every row, and what keeping only k ids loses."""
        scored: list[ScoredRow] = []
        cost = TruncationCost()
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            columns, lost = self._score_batch(batch)
            lengths = [len(row.completion_ids) for row in batch]
            for row, *told in zip(batch, *(torch.split(column, lengths) for column in columns), strict=True):
                scored.append(ScoredRow(row_key(row.prompt_ids, row.completion_ids, row.pictures), *told))
            cost += lost
        return scored, cost

    def _score_batch(self, batch: Sequence[Encoded]) -> tuple[tuple[Tensor, Tensor, Tensor], TruncationCost]:
        """Return what is kept of N tokens, on the host, and what that costs.

        That is [N, k] int32 ids, [N, k + 1] float32 log-probabilities of these and the tail, and [N] of the tokens.
        """
        # A stored row has scores of all that stands behind the prompt, whether it is trained on or not.
        prompts = self.collator.pad([replace(row, turns=[]) for row in batch]).to(self.device)
        sequences = FromDataset()(prompts, self.models, Step(0, 1))
        teacher, student = self.models.required_teacher(), self.models.student
        ids, logp, sampled, cost = [], [], [], TruncationCost()
        tokens = sequences.token_ids()[:, None]
        with torch.inference_mode(), sampling_mode(teacher), sampling_mode(student), self.precision():
            teacher_hidden, student_hidden = (model(sequences, _hidden) for model in (teacher, student))
            for start in range(0, len(teacher_hidden), self.chunk_rows):
                chunk = slice(start, start + self.chunk_rows)
                teacher_logp = self._normalised(teacher.project(teacher_hidden[chunk])[0])
                likeliest = teacher_logp.topk(self.k, -1).indices
                kept = TopKScores(likeliest, top_k_with_tail(teacher_logp, likeliest), self.temperature)
                student_logp = self._normalised(student.project(student_hidden[chunk])[0])
                cost += TruncationCost.measure(student_logp, teacher_logp, kept)
                ids.append(kept.ids.to("cpu", torch.int32))
                logp.append(kept.logp.cpu())
                sampled.append(teacher_logp.gather(1, tokens[chunk])[:, 0].cpu())
        return (torch.cat(ids), torch.cat(logp), torch.cat(sampled)), cost

    def _normalised(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits / self.temperature, -1)


def write_store(scorer: Scorer, rows: Sequence[Encoded], folder: Path, *, rows_per_shard: int, say: Say) -> Manifest:
    """Score the rows that the folder does not hold yet, shard by shard.

    Shards that are there and intact are kept, so a build that was interrupted goes on, and a second split joins the
    first. Rows without a completion have no scores and are left out; rows that repeat are scored once.

    Args:
        scorer: the teacher.
        rows: encoded rows, in the order in which they are to be scored.
        folder: where to write; created if need be.
        rows_per_shard: rows of a file, and how many are held in memory.
        say: called with lines about the progress.

    Raises:
        ConfigurationError: the folder holds scores of another teacher, tokenizer, k or temperature.
        DataError: no row has a completion.
    """
    wanted = {row_key(row.prompt_ids, row.completion_ids, row.pictures): row for row in rows if row.completion_ids}
    if not wanted:
        raise DataError(f"None of the {len(rows)} rows has a reference completion, so there is nothing to score.")
    folder.mkdir(parents=True, exist_ok=True)
    manifest, known = _intact_shards(folder, scorer.identity(), say)
    missing = [row for key, row in wanted.items() if key not in known]
    manifest = replace(manifest, complete=not missing)
    manifest.write(folder)
    say(f"{len(missing)} of {len(wanted)} rows to score, {_size(missing, scorer.k)}")
    names = _free_names(manifest.shards)
    for start in range(0, len(missing), rows_per_shard):
        scored, cost = scorer.score(missing[start : start + rows_per_shard])
        shard = write_shard(folder, next(names), scored, cost)
        done = start + len(scored)
        manifest = replace(manifest, shards=(*manifest.shards, shard), complete=done == len(missing))
        manifest.write(folder)
        say(f"{shard.file}: {done} of {len(missing)} rows")
    return manifest


def _intact_shards(folder: Path, identity: Identity, say: Say) -> tuple[Manifest, set[bytes]]:
    """Return the manifest of a folder without its damaged shards, and the keys of the rows in the intact ones."""
    if not (folder / NAME).is_file():
        return Manifest(identity), set()
    manifest = Manifest.read(folder)
    _check_identity(folder, manifest.identity, identity)
    shards: list[Shard] = []
    known: set[bytes] = set()
    for shard in manifest.shards:
        try:
            verify(folder, shard)
            keys = ShardReader(folder / shard.file, identity.k).keys()
        except DataError:
            say(f"{shard.file} is damaged and will be rebuilt")
            continue
        shards.append(shard)
        known.update(keys)
    return replace(manifest, shards=tuple(shards)), known


def _check_identity(folder: Path, theirs: Identity, ours: Identity) -> None:
    found, given = vars(theirs), vars(ours)
    if differing := [name for name in given if given[name] != found[name]]:
        details = ", ".join(f"{name} {str(found[name])[:16]} and not {str(given[name])[:16]}" for name in differing)
        raise ConfigurationError(
            f"`{folder}` holds a store with another {', '.join(differing)}: {details}. Choose another `--out`, or "
            "delete the folder."
        )


def _free_names(shards: Sequence[Shard]) -> Iterator[str]:
    taken = {shard.file for shard in shards}
    number = 0
    while True:
        if (name := f"shard-{number:05d}.safetensors") not in taken:
            yield name
        number += 1


def _size(rows: Sequence[Encoded], k: int) -> str:
    tokens = sum(len(row.completion_ids) for row in rows)
    return f"{tokens} tokens, {tokens * (8 * k + 8) / 2**20:.1f} MiB"


def _hidden(hidden: Tensor, _: object) -> Tensor:
    return hidden
