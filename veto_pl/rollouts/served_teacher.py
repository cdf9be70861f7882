"""Completions with what a teacher behind a server says about them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts.asked_servers import AskedServers, too_many_ids
from veto_pl.rollouts.sources import FromStudent
from veto_pl.seams import Mistake, Models, PromptBatch, RolloutSource, Sequences, Setup, Step, Writing


@dataclass(frozen=True, kw_only=True)
class ServedTeacher(AskedServers, RolloutSource):
    """What another source writes, scored by a teacher behind a server: no teacher is loaded.

    The server is vLLM, or another that answers `/completions` with `prompt_logprobs`. Of each token come the teacher's
    k likeliest ids, all others together, and the token that was written, so divergences over k + 1 outcomes, policy
    gradients and `ResOPD` can be trained. The teacher reads the plain text at temperature 1, and has to have the run's
    tokenizer. Both sides are compared before the models of the run are loaded, and once more on its first text.

    A row that no server answers leaves the step, and `train/unanswered` counts it; a batch without any answer ends the
    run.

    Args:
        servers: addresses that stand before `/completions`, such as `http://localhost:8000/v1`; they share the rows,
            and a row that one does not answer goes to the next.
        model: the name that the servers know the teacher by.
        source: writes the completions.
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

    source: RolloutSource = FromStudent()
    stored_teacher = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_addresses()
        if self.source.stored_teacher:
            raise ConfigurationError(
                f"`ServedTeacher.source` cannot be `{type(self.source).__name__}`, which brings scores along itself."
            )

    @classmethod
    def examples(cls) -> tuple["ServedTeacher", ...]:
        return ()

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        prompts.refuse_images("`ServedTeacher` sends ids alone to its servers", "Load the teacher (`model.teacher`).")
        written = models.rolled_out(self.source, prompts, step)
        told = self.answers(written, models.tokenizer)
        assert told.unanswered is not None, "servers say which rows they have not answered"
        counted = written.loss_mask & ~told.unanswered[:, None]
        return replace(written, teacher_scores=told.scores, unanswered=told.unanswered, loss_mask=counted)

    def writings(self) -> tuple[Writing, ...]:
        return tuple(replace(writing, stored=self.of_nothing()) for writing in self.source.writings())

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a k that leaves nothing for the ids together."""
        yield from too_many_ids(self.k, setup, path)
