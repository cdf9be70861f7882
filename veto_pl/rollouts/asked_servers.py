"""Servers that are asked what a teacher says of completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.bounds import Count, CountFromZero, Positive
from veto_pl.core.extras import require_extra
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models.vocabulary import real_ids
from veto_pl.rollouts.prompt_scores import check_server, request_for, scores_of
from veto_pl.seams import Answers, Mistake, Sequences, Setup
from veto_pl.servers.endpoint import Endpoint, NoAnswerError
from veto_pl.servers.pool import ask_somewhere

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_REPLY = 2**28
"""Bytes of an answer: about 80 for each id of each token, of the prompt too."""
FEW_IDS = 8
"""Of the vocabulary, that both sides are compared on before there is a text of the run."""
_checked: set[tuple[Endpoint, str, int]] = set()


@dataclass(frozen=True, kw_only=True)
class AskedServers:
    """Servers of one teacher, which share the rows that they are asked about.

    Args:
        servers: addresses that stand before `/completions`, such as `http://localhost:8000/v1`; they share the rows,
            and a row that one does not answer goes to the next.
        model: the name that the servers know the teacher by.
        k: likeliest ids; at most the server's `--max-logprobs`.
        api_key_variable: the environment variable that holds the key, or None for no key.
        timeout: seconds of one attempt.
        retries: further attempts at each server.
        concurrency: rows that each server is asked for at a time.
    """

    servers: tuple[str, ...]
    model: str
    k: Count = 16
    api_key_variable: str | None = None
    timeout: Positive = 120.0
    retries: CountFromZero = 2
    concurrency: Count = 32

    def check_addresses(self) -> None:
        """Raise `ConfigurationError` where no address is named, or one is none; or where a package is missing."""
        name = type(self).__name__
        require_extra("openai", extra="served", needed_by=f"`{name}`")
        if not self.servers:
            raise ConfigurationError(f"`{name}.servers` must name a server, got none.")
        self._endpoints()

    def of_nothing(self) -> TopKScores:
        """Return what is told of no tokens, [0]."""
        return TopKScores.uniform((0,), self.k, sampled=True)

    def before_loading(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask each server for a few texts; warn of one that is silent, and refuse to begin where all are."""
        special = set(tokenizer.all_special_ids)
        few = [i for i in range(min(len(tokenizer), FEW_IDS + len(special))) if i not in special]
        answers = {end.base_url: check_server(end, self.model, self.k, tokenizer, few) for end in self._endpoints()}
        silent = [f"{address} ({reason})" for address, reason in answers.items() if reason is not None]
        if len(silent) == len(answers):
            raise ConfigurationError(
                f"The teacher `{self.model}` cannot be reached at {', '.join(silent)}. Start its servers before the "
                f"run, or correct `{type(self).__name__}.servers`."
            )
        if silent:
            rank_zero_warn(f"The teacher `{self.model}` cannot be reached at {', '.join(silent)}; others do its part.")

    def answers(self, written: Sequences, tokenizer: PreTrainedTokenizerBase) -> Answers:
        """Return what the teacher says of the rows that count; in the others nothing is scored.

        Raises:
            ConfigurationError: a server refuses the request, or its ids are not those of the run.
            DataError: no server answers any row, or each of its answers has ids that the run does not have.
        """
        told = TopKScores.uniform(tuple(written.input_ids.shape), self.k, sampled=True)
        unanswered, behind = torch.zeros(len(written), dtype=torch.bool), written.completion_mask.cpu()
        for row, answer in self._ask(written, tokenizer).items():
            unanswered[row] = answer is None
            if answer is not None:
                told[row, behind[row]] = answer
        device = written.input_ids.device
        return Answers(told.to(device), unanswered.to(device))

    def _ask(self, written: Sequences, tokenizer: PreTrainedTokenizerBase) -> dict[int, TopKScores | None]:
        """Return what the teacher says of each row that counts, or None where no server has answered."""
        rows = written.loss_mask.any(1).nonzero()[:, 0].tolist()
        texts = {row: written.input_ids[row, written.attention_mask[row]].tolist() for row in rows}
        if rows:
            self._check(tokenizer, list(texts.values()))
        bodies = [request_for(self.model, ids, self.k) for ids in texts.values()]
        replies = ask_somewhere(self._endpoints(), "/completions", bodies, self.concurrency)
        lengths = written.completion_mask.sum(1).tolist()
        vocabulary = real_ids(tokenizer)
        answers: dict[int, TopKScores | None] = {}
        for (row, ids), reply in zip(texts.items(), replies, strict=True):
            completion = ids[-lengths[row] :]
            answers[row] = (
                None if isinstance(reply, NoAnswerError) else scores_of(reply, completion, self.k, vocabulary)
            )
        if answers and all(answer is None for answer in answers.values()):
            silent = any(isinstance(reply, NoAnswerError) for reply in replies)
            raise DataError(self._why_none(len(answers), silent=silent, vocabulary=vocabulary))
        return answers

    def _why_none(self, rows: int, *, silent: bool, vocabulary: int) -> str:
        """Return why no row was scored: servers were silent, or told of ids that the run does not have."""
        if silent:
            return (
                f"None of {rows} rows was scored by the teacher `{self.model}` at {', '.join(self.servers)}. See "
                f"whether the servers run, raise `{type(self).__name__}.timeout` or `retries`, and go on from a "
                "checkpoint."
            )
        return (
            f"The teacher `{self.model}` has ids from {vocabulary} on among its {self.k} likeliest in each of {rows} "
            "rows, where the run's tokenizer has none: they are padding rows of the teacher's head. Lower "
            f"`{type(self).__name__}.k`, or serve a model without such rows."
        )

    def _check(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> None:
        """Compare the tokenizers of both sides, once per process and server."""
        for endpoint in self._endpoints():
            known = (endpoint, self.model, self.k)
            if known not in _checked and check_server(*known, tokenizer, rows[0]) is None:
                _checked.add(known)

    def _endpoints(self) -> tuple[Endpoint, ...]:
        how = (self.api_key_variable, self.timeout, self.retries, "teacher", LARGEST_REPLY)
        return tuple(Endpoint(address, *how) for address in self.servers)


def too_many_ids(k: int, setup: Setup, path: str) -> Iterator[Mistake]:
    """Yield a k that leaves nothing for the ids together."""
    if setup.vocab_size is not None and k >= setup.vocab_size:
        yield Mistake(f"{path}.init_args.k", f"{k}", f"fewer than the {setup.vocab_size} ids", "Lower it.")
