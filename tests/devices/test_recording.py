"""Recordings on the pretended GPU: they refuse what CUDA's refuse; recorded rollouts write the CPU's rows."""

import pytest
import torch

from tests.marks import fast
from veto_pl.rollouts import DecodeLoop, FromStudent, Sampling, TeacherMixed, TeacherSwitched
from veto_pl.seams import Step
from veto_pl.testing.pretended_gpu import counted
from veto_pl.testing.pretended_graph import PretendedRecorder
from veto_pl.testing.tiny import prompt_batch, tiny_models

DEVICE = "gpu:0"
PROMPTS = ("abcdefgh>", "bcd>", "c>", "ponm>")


def recorder():
    return PretendedRecorder(torch.device(DEVICE))


def test_work_is_done_at_each_replay_and_not_while_it_is_recorded():
    total, factor = torch.zeros(2, device=DEVICE), [2]
    one = torch.ones(2, device=DEVICE)

    def work():
        total.add_(one * factor[0])

    with counted() as work_done:
        replay = recorder().record(work)
    assert not work_done.kernels
    assert total.tolist() == [0, 0]
    factor[0] = 100  # of Python, and as it was when it was recorded
    one.mul_(3)
    with counted() as work_done:
        replay()
        replay()
    assert dict(work_done.kernels) == {"replay": 2}
    assert total.tolist() == [12, 12]


def test_a_variable_that_names_another_tensor_is_not_followed():
    state = {"held": torch.zeros(1, device=DEVICE)}
    first = state["held"]
    replay = recorder().record(lambda: state["held"].add_(1))
    state["held"] = torch.zeros(1, device=DEVICE)
    replay()
    assert (first.tolist(), state["held"].tolist()) == ([1], [0])


def test_a_tensor_that_is_gone_is_told():
    state = {"held": torch.ones(1, device=DEVICE)}
    total = torch.zeros(1, device=DEVICE)
    replay = recorder().record(lambda: total.add_(state["held"]))
    del state["held"]
    with pytest.raises(RuntimeError, match="freed before it was replayed"):
        replay()


REFUSED = {
    "a number": lambda x: x.sum().item(),
    "a branch": lambda x: bool(x.any()),
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a copy to the host": lambda x: x.cpu(),
    "numbers of the host": lambda x: torch.tensor([1.0], device=DEVICE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_waiting_is_refused(name):
    given = torch.ones(2, device=DEVICE)
    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        recorder().record(lambda: REFUSED[name](given))
    assert given.sum().item() == 2, "afterwards the host may wait again"


SOURCES = {
    "sampled": FromStudent(Sampling(temperature=1.5, max_new_tokens=24, num_completions=2)),
    "nucleus": FromStudent(Sampling(top_p=0.6, max_new_tokens=24)),
    "stop": FromStudent(Sampling(temperature=1.5, max_new_tokens=24, stop=("ab", "c"))),
    "mixture": TeacherMixed(0.5, Sampling(max_new_tokens=24)),
    "switched": TeacherSwitched(1.0, Sampling(max_new_tokens=24)),
}


@pytest.mark.parametrize("name", fast(SOURCES, "sampled", "stop"))
def test_recorded_rollouts_write_the_cpus_rows(name):
    written = []
    for device in ("cpu", DEVICE):
        models = tiny_models("qwen2")
        for model in (models.student, models.teacher):
            model.to(device)
        with counted() as work:
            written.append(SOURCES[name](prompt_batch(models, PROMPTS).to(device), models, Step(2, 10)))
    assert work.kernels["replay"] > 10, work.table()
    of_cpu, rows = written
    for field in ("input_ids", "loss_mask", "ending", "unjudged"):
        assert torch.equal(getattr(rows, field).cpu(), getattr(of_cpu, field)), field
    torch.testing.assert_close(rows.sampler_logp.cpu(), of_cpu.sampler_logp, rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms_are_not_recorded():
    models = tiny_models("qwen2")
    models.student.to(DEVICE)
    batch = prompt_batch(models, PROMPTS).to(DEVICE)
    torch.use_deterministic_algorithms(True)
    with counted() as work:
        rows = SOURCES["sampled"](batch, models, Step(2, 10))
    assert "deterministic" in DecodeLoop().obstacle(models.student)
    assert rows.loss_mask.any()
    assert not work.kernels["replay"]
