"""How near completions are to the references of their rows, and how often they are preferred to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.overlap import RougeKind, rouge
from veto_pl.exceptions import ConfigurationError
from veto_pl.judging import Pair, ReferenceJudge, ask_all
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric
from veto_pl.seams import Example, Judge


class Rouge(CompletionMetric):
    """The F measure of ROUGE against the best reference, in [0, 1]; the mean over completions.

    Completions of rows without a reference count for nothing. Words are runs of ASCII letters and digits, in lower case
    and not stemmed.

    Args:
        kind: `rouge1`, `rouge2` or `rougeL`.

    References:
        Lin 2004, ACL W04-1013
    """

    unit = "%"
    higher_is_better = True

    def __init__(self, kind: RougeKind = "rougeL") -> None:
        super().__init__()
        if kind not in ("rouge1", "rouge2", "rougeL"):
            raise ConfigurationError(f"`Rouge.kind` expected rouge1, rouge2 or rougeL, got {kind!r}.")
        self.kind = self.name = kind
        self.title = kind.replace("rouge", "ROUGE-")

    def update(self, generations: Generations) -> None:
        scores = [rouge(text, example.references, self.kind) for example, text in _with_references(generations)]
        self._add(torch.tensor(scores, dtype=torch.float64))


class BERTScore(CompletionMetric):
    """The F measure of BERTScore against the best reference; the mean over completions.

    Tokens are matched by the cosine of their hidden states, without idf weights and without rescaling. torchmetrics
    computes it, a pair at a time: given many it exchanges them (its sorting by length is not undone). An empty
    completion has 0. The model is loaded at the first update, on the metric's device, and is in no checkpoint.

    Args:
        model: folder or hub name of an encoder.
        layer: whose hidden states are compared, 0 being the embeddings; None for the last. The authors take 17 of
            roberta-large.

    References:
        arXiv 1904.09675
    """

    name = "bert_score"
    title = "BERTScore"
    higher_is_better = True

    def __init__(self, model: str = "roberta-large", layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.layer = layer

    @classmethod
    def examples(cls) -> tuple[BERTScore, ...]:
        return ()

    def update(self, generations: Generations) -> None:
        answered = list(_with_references(generations))
        known = {pair: self._score(*pair) for pair in {(text, one) for row, text in answered for one in row.references}}
        scores = [max(known[text, one] for one in row.references) for row, text in answered]
        self._add(torch.tensor(scores, dtype=torch.float64))

    def _score(self, text: str, reference: str) -> float:
        from torchmetrics.functional.text.bert import bert_score

        if not text.strip() or not reference.strip():
            return 0.0
        encoder, tokenizer = _encoder(self.model, str(self.device))
        with torch.autocast(self.device.type, enabled=False):  # 3 digits of a cosine would be lost
            found = bert_score(
                [text],
                [reference],
                model=encoder,
                user_tokenizer=tokenizer,
                num_layers=self.layer,
                max_length=_max_tokens(encoder, tokenizer),
                truncation=True,
                device=self.device,
            )
        return float(torch.as_tensor(found["f1"]).nan_to_num())


class WinRate(CompletionMetric):
    """How often the completion is preferred to the reference, a tie counting as half; the mean over completions.

    With several references the completion is compared to the first, and the judge is shown the others only: one that
    compares with the opponent itself cannot prefer anything to it. Rows without a reference count for nothing, and
    neither do pairs that the judge does not decide, as `ReferenceJudge` does not where no other reference is left;
    their number is warned of.

    Args:
        judge: decides; it is asked on the rank that has the row.
        both_orders: ask twice, with the texts exchanged; a verdict that depends on the order is a tie.
        name: the key that it is logged under, for more than one judge.
    """

    unit = "%"
    higher_is_better = True

    def __init__(self, judge: Judge, both_orders: bool = True, name: str = "win_rate") -> None:
        super().__init__()
        self.name = name
        self.judge = judge
        self.both_orders = both_orders

    @classmethod
    def examples(cls) -> tuple[WinRate, ...]:
        return (cls(ReferenceJudge()),)

    def update(self, generations: Generations) -> None:
        pairs = [
            Pair(_without_first_reference(example), text, example.references[0])
            for example, text in _with_references(generations)
        ]
        verdicts = ask_all(self.judge, pairs, both_orders=self.both_orders)
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        if missing := [verdict.reason for verdict in verdicts if verdict.score is None]:
            name = type(self.judge).__name__
            rank_zero_warn(f"{name} did not decide {len(missing)} of {len(pairs)} pairs; the first: {missing[0]}.")
        self._add(torch.tensor(scores, dtype=torch.float64))


def _with_references(generations: Generations) -> Iterator[tuple[Example, str]]:
    """Yield each completion with its row, where the row has a reference."""
    for example, group in zip(generations.examples, generations.groups(), strict=True):
        if example.references:
            yield from ((example, text) for text in group)


def _without_first_reference(example: Example) -> Example:
    """Return the row without its first reference, however often it stands there."""
    first, *others = example.references
    rest = [one for one in others if one != first]
    return replace(example, completion=rest[0] if rest else None, alternatives=tuple(rest[1:]))


@lru_cache(maxsize=2)
def _encoder(name: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"`BERTScore.model` expected a folder or a hub name of an encoder, got {name!r}: {str(error)[:200]}"
        ) from error
    return model.eval().to(device), tokenizer


def _max_tokens(encoder: Any, tokenizer: Any) -> int:
    """Return how many tokens the encoder has positions for; RoBERTa numbers them from behind the padding id."""
    positions = getattr(encoder.config, "max_position_embeddings", 512)
    return int(min(positions - 2, tokenizer.model_max_length, 512))
