"""A student that is sampled by a real vLLM server, which gets its weights through a folder: run by `make test-vllm`."""

import pytest
from vllm_runs import NAME, STEPS, STUDENTS, Watch, fit, stored, vllm_server

from veto_pl.rollouts import VllmServer

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with vllm_server(stored(folder / "model", STUDENTS["llama"]), "--logprobs-mode", "processed_logprobs") as address:
        engine = VllmServer(server=address, model=NAME, transfer="folder", folder=str(folder / "weights"))
        watch = Watch(engine, writers=1)
        fit(folder, engine=engine, callbacks=[watch], limit_val_batches=0)
        yield watch.seen


def test_after_each_update_the_server_writes_what_the_own_loop_writes(watched):
    assert len(watched) == STEPS
    written = [[str([ids.tolist() for ids in rows.completions()]) for rows in texts[0]] for texts in watched]
    for theirs, ours in written:
        assert theirs == ours
    assert len({theirs for theirs, _ in written}) > STEPS // 2, "the weights did not move"


def test_the_gap_to_the_server_is_rounding(watched):
    for *_, own, reported, logged in watched:
        assert (own - reported).abs().max() < 1e-3
        assert 0 < logged["train/engine_gap"] < 1e-4
