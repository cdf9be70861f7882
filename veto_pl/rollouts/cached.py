"""The task's completions, with what a stored teacher says about them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import DataError
from veto_pl.offline.store import ScoreStore, complete_manifest, open_store
from veto_pl.rollouts.endings import reference_completions
from veto_pl.seams import Models, PromptBatch, RolloutSource, Sequences, Step, Writing
from veto_pl.storage.paths import expand_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FromCache(RolloutSource):
    """The task's reference completions with stored teacher scores: no teacher is loaded.

    Args:
        path: a folder that `veto-pl cache-teacher` wrote from the same rows.

    Raises:
        ConfigurationError: there is no complete store in the folder, or its tokenizer is not the run's.
        DataError: a shard is damaged, or a row was never scored.
    """

    path: str
    stored_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", expand_home(self.path))
        complete_manifest(self.path)

    @classmethod
    def examples(cls) -> tuple["FromCache", ...]:
        return ()

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        sequences = reference_completions(prompts, models)
        return replace(sequences, teacher_scores=stored_scores(self.path, sequences, models.tokenizer))

    def writings(self) -> tuple[Writing, ...]:
        return (Writing(stored=of_store(self.path)),)


def of_store(path: str) -> TopKScores:
    """Return what a store has of no tokens, [0]."""
    store = complete_manifest(path).identity
    return TopKScores.uniform((0,), store.k, store.temperature, sampled=store.sampled_logp)


def stored_scores(path: str, sequences: Sequences, tokenizer: "PreTrainedTokenizerBase") -> TopKScores:
    """Return the stored scores of the tokens, [B, T].

    Where no completion token stands, they are a uniform distribution over the first ids and the tail.

    Args:
        path: of the store.
        sequences: B rows.
        tokenizer: of their ids.

    Raises:
        ConfigurationError: the store has another tokenizer.
        DataError: a shard is damaged, or a row was never scored.
    """
    store = open_store(path)
    store.check_tokenizer(tokenizer)
    columns = (sequences.input_ids, sequences.attention_mask, sequences.completion_mask)
    ids, attended, written = (column.cpu() for column in columns)
    told = TopKScores.uniform(tuple(ids.shape), store.k, store.temperature, sampled=store.sampled_logp)
    images = _images(sequences)
    for row in written.any(1).nonzero()[:, 0].tolist():
        prompt, completion = ids[row, attended[row] & ~written[row]].tolist(), ids[row, written[row]].tolist()
        scores = store.find(prompt, completion, images.get(row, ()))
        if scores is None:
            raise DataError(_never_scored(store, tokenizer.decode(prompt), len(prompt), len(completion)))
        told[row, written[row]] = scores
    return told.to(sequences.input_ids.device)


def _images(sequences: Sequences) -> dict[int, list[str]]:
    """Return hashes of the images of each row that has some."""
    examples = () if sequences.prompts is None else sequences.prompts.examples
    if not any(example.images for example in examples):
        return {}
    rows = enumerate(sequences.prompt_rows.tolist())
    return {row: [image.digest for image in examples[of].images] for row, of in rows}


def _never_scored(store: ScoreStore, text: str, prompt_tokens: int, completion_tokens: int) -> str:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return (
        f"The store `{store.folder}` ({len(store)} rows) has no scores for the row with the prompt {shown!r} "
        f"({prompt_tokens} prompt and {completion_tokens} completion tokens). It must have been written from the same "
        "rows, template, `completion_prefix` and length limits. Add this run's rows: `veto-pl cache-teacher --config "
        f"<this run's config, with its teacher> --out {store.folder}`."
    )
