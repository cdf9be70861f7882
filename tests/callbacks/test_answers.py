"""The answers of a test as files: in the order of the split on any number of ranks, token by token for the first."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Answers
from veto_pl.commands.main import main
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import CompletionMetric, ForwardKL, MeanReward, ReverseKL
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import SFT, Veto
from veto_pl.rollouts import Sampling
from veto_pl.seams import Step
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source
from veto_pl.training.evaluation import Evaluation
from veto_pl.training.fsdp import FullyShard
from veto_pl.training.token_texts import token_texts

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl", "ko", "p", "mnop"]
CONFIGS = Path(__file__).parents[2] / "configs" / "debug"
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Likelihood(CompletionMetric):
    """Looks at what nobody else asks for."""

    name = "likelihood"
    needs_logp = True

    def update(self, generations):
        assert generations.logp.shape == generations.rewards.shape
        self._add(generations.logp)


def answer(folder, *, devices=1, strategy="auto", batch_size=3, teacher=True, callback=None):
    """Tests a tiny model in `folder`."""
    folder = Path(folder)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    module = DistillationModule(
        Veto() if teacher else SFT(),
        tiny_source(),
        tiny_source(seed=1) if teacher else None,
        tokenizer=CharacterTokenizer(ALPHABET),
        evaluation=Sampling(num_completions=2, max_new_tokens=5),
        metrics=[MeanReward(), ForwardKL(), ReverseKL(), Likelihood()],
    )
    task = JsonLines(train=str(rows), test=str(rows), verifier=ExactMatch())
    data = PromptDataModule(task, validation_batch_size=batch_size, max_prompt_tokens=32, max_completion_tokens=32)
    L.Trainer(
        default_root_dir=str(folder), accelerator="cpu", devices=devices, use_distributed_sampler=False,
        strategy=FullyShard(False, False) if strategy == "fsdp2" else strategy,
        callbacks=[callback or Answers(annotated=3)], **QUIET,
    ).test(module, data, verbose=False)  # fmt: skip


def written(folder):
    return [json.loads(line) for line in Path(folder, "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    answer(folder)
    return folder


def test_every_completion_has_a_line_in_the_order_of_the_split(alone):
    lines = written(alone)
    assert [line["prompt"] for line in lines] == [f"{word}>" for word in WORDS for _ in range(2)]
    assert [line["reference"] for line in lines] == [word[::-1] for word in WORDS for _ in range(2)]
    assert all(set(line) >= {"prompt", "completion", "reference", "reward"} for line in lines)
    assert len({line["completion"] for line in lines}) > len(WORDS)


def test_the_first_completion_of_the_first_prompts_is_annotated(alone):
    lines = written(alone)
    annotated = [i for i, line in enumerate(lines) if "tokens" in line]
    assert annotated == [0, 2, 4]
    for line in (lines[i] for i in annotated):
        assert "".join(line["tokens"]) == line["completion"]
        assert len(line["tokens"]) == len(line["forward_kl"]) == len(line["reverse_kl"])
        assert min(line["forward_kl"] + line["reverse_kl"]) > 0


def test_metrics_are_those_that_were_logged(alone):
    found = json.loads((alone / "test.json").read_text())
    assert (found["prompts"], found["completions"]) == (len(WORDS), 2)
    assert set(found["metrics"]) == {"mean_reward", "forward_kl", "reverse_kl", "likelihood"}
    rewards = [line["reward"] for line in written(alone)]
    assert found["metrics"]["mean_reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_annotations_average_to_the_metrics(tmp_path):
    answer(tmp_path, callback=Answers(annotated=100))
    first = [value for line in written(tmp_path) for value in line.get("forward_kl", [])]
    assert 0.5 < sum(first) / len(first) / json.loads((tmp_path / "test.json").read_text())["metrics"]["forward_kl"] < 2


def answer_on_ranks(folders):
    for strategy, folder in folders.items():
        answer(folder, devices=2, strategy=strategy, batch_size=2)


def test_two_ranks_write_the_files_of_one(alone, tmp_path):
    """Eleven rows: the ranks' shares differ, and so do the rows of theirs that are annotated."""
    folders = {strategy: tmp_path / strategy for strategy in ("ddp", "fsdp2")}
    for folder in folders.values():
        folder.mkdir()
    run_ranks(answer_on_ranks, 2, {strategy: str(folder) for strategy, folder in folders.items()})
    one, single = written(alone), json.loads((alone / "test.json").read_text())
    for folder in folders.values():
        two, several = written(folder), json.loads((folder / "test.json").read_text())
        for name in ("prompt", "completion", "reference", "reward", "tokens"):
            assert [line.get(name) for line in two] == [line.get(name) for line in one]
        for mine, other in zip(two, one, strict=True):
            assert mine.get("forward_kl", []) == pytest.approx(other.get("forward_kl", []), rel=1e-4, abs=1e-5)
        assert several["metrics"] == pytest.approx(single["metrics"], rel=1e-4)
        assert (several["prompts"], several["completions"]) == (single["prompts"], single["completions"])


def test_the_command_writes_both_files(tmp_path, monkeypatch):
    """As a user runs it, with a family of metrics, several completions, and the callback's own setting."""
    monkeypatch.chdir(tmp_path)
    options = ["--model.evaluation", "{temperature: 1.0, num_completions: 3, max_new_tokens: 6}", "--run_dir", "run"]
    metrics = ["--model.metrics", "[PassCurve, VendiScore, CalibrationError, ForwardKL]", "--answers.annotated", "2"]
    files = [f"--config={CONFIGS / 'base.yaml'}", f"--config={CONFIGS / 'veto.yaml'}"]
    main(["test", *files, *options, *metrics])
    lines, found = written("run"), json.loads(Path("run/test.json").read_text())
    assert len(lines) == found["prompts"] * found["completions"] > 0
    assert [i for i, line in enumerate(lines) if "forward_kl" in line] == [0, 3]
    names = {f"pass@{k}{bound}" for k in (1, 2, 3) for bound in ("", "_low", "_high")}
    assert set(found["metrics"]) == names | {"vendi_2", "calibration_error", "forward_kl"}
    assert found["metrics"]["pass@1_low"] <= found["metrics"]["pass@1"] < found["metrics"]["pass@1_high"] < 1


def test_without_a_teacher_there_are_tokens_alone(tmp_path):
    answer(tmp_path, teacher=False)
    first = written(tmp_path)[0]
    assert "".join(first["tokens"]) == first["completion"]
    assert not {"forward_kl", "reverse_kl"} & set(first)


def test_without_annotations_lines_are_plain(tmp_path):
    answer(tmp_path, callback=Answers(annotated=0))
    assert all(set(line) == {"prompt", "completion", "reference", "reward"} for line in written(tmp_path))


class Breaks(Answers):
    """Stops after the first batch."""

    def on_test_batch_end(self, *args, **kwargs):
        super().on_test_batch_end(*args, **kwargs)
        raise KeyboardInterrupt


def test_a_test_that_breaks_off_leaves_the_old_answers(tmp_path):
    (tmp_path / "answers.jsonl").write_text("old\n")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        answer(tmp_path, callback=Breaks())
    assert (tmp_path / "answers.jsonl").read_text() == "old\n"
    assert not (tmp_path / "test.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if "answers" in path.name) == ["answers.jsonl"]


def test_annotated_is_a_count():
    with pytest.raises(ConfigurationError, match=r"`Answers\.annotated` must be at least 0, got -1"):
        Answers(annotated=-1)


def byte_level():
    """A tokenizer whose every token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={"<eos>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


BYTES = byte_level()


@given(st.text(max_size=20))
def test_token_texts_of_bytes_join_to_the_text(text):
    ids = [*BYTES(text, add_special_tokens=False)["input_ids"], BYTES.eos_token_id]
    texts = token_texts(ids, BYTES)
    assert len(texts) == len(ids)
    assert "".join(texts) == BYTES.decode(ids, skip_special_tokens=True) == text
    assert texts[-1] == ""


@given(st.lists(st.integers(0, 256), max_size=30))
def test_token_texts_of_what_is_no_text_join_too(ids):
    texts = token_texts(ids, BYTES)
    assert (len(texts), "".join(texts)) == (len(ids), BYTES.decode(ids, skip_special_tokens=True))


def test_the_token_that_completes_a_character_has_it():
    ids = BYTES("aé€b", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, BYTES) == ["a", "", "é", "", "", "€", "b"]


def test_likelihoods_are_those_of_a_dense_model():
    """The log-probability of each completion, from the transformers model itself in float64."""
    models = tiny_models()
    batch = prompt_batch(models, ["ab>", "c>"])
    evaluation = Evaluation.sample(
        batch, models, Sampling(num_completions=3, max_new_tokens=4, temperature=2.0), Step(0, 1)
    )
    judged = evaluation.update([Likelihood()])
    dense = models.student.model.double()
    for row, (prompt, ids) in enumerate(
        zip([p for p in ("ab>", "c>") for _ in range(3)], evaluation.generations.tokens, strict=True)
    ):
        start = models.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = dense(torch.tensor([start + ids])).logits[0].log_softmax(-1)
        expected = sum(float(logp[len(start) + i - 1, token]) for i, token in enumerate(ids))
        assert float(judged.generations.logp.flatten()[row]) == pytest.approx(expected, abs=1e-4)
    assert evaluation.generations.logp is None
