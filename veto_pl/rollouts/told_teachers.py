"""Teachers of `model.teachers` without a model here: stored scores, and servers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.core.scores import TopKScores
from veto_pl.offline.store import complete_manifest
from veto_pl.rollouts.asked_servers import AskedServers, too_many_ids
from veto_pl.rollouts.cached import of_store, stored_scores
from veto_pl.seams import Answers, Mistake, ScoreSource, Sequences, Setup
from veto_pl.storage.paths import expand_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StoredScores(ScoreSource):
    """A teacher by what `veto-pl cache-teacher` has stored of it: it knows the references that it was asked about.

    Args:
        path: the folder.

    Raises:
        ConfigurationError: there is no complete store in the folder, or its tokenizer is not the run's.
        DataError: a shard is damaged, or a row that this teacher is to read was never scored.
    """

    path: str
    knows_new_texts = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", expand_home(self.path))
        complete_manifest(self.path)

    @classmethod
    def examples(cls) -> tuple["StoredScores", ...]:
        return ()

    def __call__(self, sequences: Sequences, tokenizer: "PreTrainedTokenizerBase") -> Answers:
        return Answers(stored_scores(self.path, sequences, tokenizer))

    def of_nothing(self) -> TopKScores:
        return of_store(self.path)


@dataclass(frozen=True, kw_only=True)
class ServedScores(AskedServers, ScoreSource):
    """A teacher behind a server, which is asked about the rows that it is to read.

    The server is vLLM, or another that answers `/completions` with `prompt_logprobs`. Of each token come the teacher's
    k likeliest ids, all others together, and the token that was written. The teacher reads the plain text at
    temperature 1, and has to have the run's tokenizer. A row that no server answers is not read by this teacher, and
    `train/NAME/unanswered` counts it.

    Args:
        servers: addresses that stand before `/completions`, such as `http://localhost:8000/v1`; they share the rows,
            and a row that one does not answer goes to the next.
        model: the name that the servers know the teacher by.
        k: likeliest ids; at most the server's `--max-logprobs`.
        api_key_variable: the environment variable that holds the key, or None for no key.
        timeout: seconds of one attempt.
        retries: further attempts at each server.
        concurrency: rows that each server is asked for at a time.

    Raises:
        ConfigurationError: no server can be reached when the run begins, one refuses the request, or its ids are not
            those of the run.
        DataError: no server answers any row, or each of its answers has ids that the run does not have.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_addresses()

    @classmethod
    def examples(cls) -> tuple["ServedScores", ...]:
        return ()

    def __call__(self, sequences: Sequences, tokenizer: "PreTrainedTokenizerBase") -> Answers:
        return self.answers(sequences, tokenizer)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a k that leaves nothing for the ids together."""
        yield from too_many_ids(self.k, setup, path)
