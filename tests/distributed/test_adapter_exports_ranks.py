"""What ranks export of a student with an adapter that they share is the student."""

import pytest
import torch
from adapter_exports import BASE, export
from peft import PeftModel
from transformers import AutoModelForCausalLM

from veto_pl.models import CharacterTokenizer, InMemory
from veto_pl.models.assemble import load_student
from veto_pl.models.probes import probe_logits
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import ALPHABET

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_export_the_student_that_they_share(half, tmp_path):
    tokenizer = CharacterTokenizer(ALPHABET).load()
    first, second = run_ranks(export, 2, str(tmp_path), half)
    assert torch.equal(first["student"], second["student"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "separate" / "base")
    before = probe_logits(load_student(BASE, tokenizer).eval())
    assert torch.equal(probe_logits(load_student(InMemory(base), tokenizer).eval()), before)
    apart = PeftModel.from_pretrained(base, tmp_path / "separate")
    rough = {"rtol": 0.05, "atol": 0.5} if half else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(first["base"], before, **rough)
    for model in (merged, apart):
        logits = probe_logits(load_student(InMemory(model), tokenizer).eval())
        torch.testing.assert_close(logits, first["student"], **rough)
        assert not torch.allclose(logits, before, atol=0.1)
