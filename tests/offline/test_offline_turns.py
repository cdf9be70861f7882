"""A stored teacher scores conversations of which only the answers are trained on."""

import torch

from tests.offline.conftest import write
from veto_pl.data import ChatTemplate, Collator
from veto_pl.rollouts import FromCache
from veto_pl.seams import Conversation, Example, Step

TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '>' }}{% endfor %}"


def test_what_stands_between_the_answers_is_scored_and_does_not_count(models, tmp_path):
    roles = ("user", "assistant", "user", "assistant")
    said = [{"role": role, "content": text} for role, text in zip(roles, ("abc", "cba", "de", "ed"), strict=True)]
    collator = Collator(tokenizer=models.tokenizer, template=ChatTemplate(template=TEMPLATE))
    rows = collator.encode([
        Example("abc", conversation=Conversation(tuple(said), (1, 3))),
        Example("abc", conversation=Conversation(tuple(said[:2]), (1,))),
    ])  # fmt: skip
    write(tmp_path / "store", models, rows)
    batch = collator.pad(rows)
    sequences = FromCache(str(tmp_path / "store"))(batch, models, Step(0, 1))
    assert sequences.loss_mask.sum(1).tolist() == [7, 4]
    assert sequences.completion_mask.sum(1).tolist() == [10, 4]
    assert torch.isfinite(sequences.teacher_scores.logp).any(-1).all()
