"""Writing a store: fingerprints, interruptions, and what the truncation costs."""

import copy
import math

import pytest
import torch

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.offline import ScoreStore
from veto_pl.offline.cost import TruncationCost
from veto_pl.offline.fingerprint import model_fingerprint, tokenizer_fingerprint
from veto_pl.offline.manifest import Manifest
from veto_pl.seams import Models
from veto_pl.testing.tiny import ALPHABET, tiny_models

from .conftest import WORDS, encoded, write

VOCABULARY = len(ALPHABET) + 3


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_build_goes_on_and_ends_as_if_nothing_had_happened(models, tmp_path):
    write(tmp_path / "whole", models)
    said = []

    def interrupt(line):
        said.append(line)
        if line.startswith("shard-00001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", models, say=interrupt)
    assert not Manifest.read(tmp_path / "cut").complete
    kept = (tmp_path / "cut" / "shard-00000.safetensors").stat().st_mtime_ns
    write(tmp_path / "cut", models, say=said.append)
    assert said[-2].startswith(f"{len(WORDS) - 8} of {len(WORDS)} rows to score")
    assert (tmp_path / "cut" / "shard-00000.safetensors").stat().st_mtime_ns == kept
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_file_that_was_cut_off_is_not_taken_for_a_shard(models, tmp_path):
    write(tmp_path / "whole", models)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".shard-00000.safetensors.writing").write_bytes(b"half")
    (tmp_path / "cut" / "shard-00001.safetensors").write_bytes(b"not in the manifest")
    write(tmp_path / "cut", models)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_building_twice_gives_the_same_bytes_and_scores_nothing_anew(models, tmp_path):
    said = []
    write(tmp_path / "one", models)
    write(tmp_path / "two", models)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    write(tmp_path / "one", models, say=said.append)
    assert said == [f"0 of {len(WORDS)} rows to score, 0 tokens, 0.0 MiB"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_second_split_joins_the_first(models, tmp_path):
    write(tmp_path, models, encoded(models, WORDS[:5]))
    write(tmp_path, models, encoded(models, [*WORDS, *WORDS]))
    assert len(ScoreStore(tmp_path)) == len(WORDS)
    assert sum(shard.rows for shard in Manifest.read(tmp_path).shards) == len(WORDS)


@pytest.mark.parametrize("setting", [{"k": 6}, {"temperature": 2.0}])
def test_scores_of_another_kind_do_not_join(models, tmp_path, setting):
    write(tmp_path, models)
    (name,) = setting
    with pytest.raises(ConfigurationError, match=f"holds a store with another {name}: .*Choose another `--out`"):
        write(tmp_path, models, **setting)


def test_a_changed_teacher_is_another_teacher(models, tmp_path):
    write(tmp_path, models)
    teacher = copy.deepcopy(models.teacher)
    assert model_fingerprint(teacher.model) == Manifest.read(tmp_path).identity.teacher
    with torch.no_grad():
        weight = dict(teacher.model.named_parameters())["model.norm.weight"]
        weight[3] = torch.nextafter(weight[3], torch.tensor(math.inf, dtype=weight.dtype))
    assert model_fingerprint(teacher.model) != Manifest.read(tmp_path).identity.teacher
    with pytest.raises(ConfigurationError, match="another teacher"):
        write(tmp_path, Models(models.student, teacher, models.tokenizer))


def test_the_fingerprint_reads_names_shapes_dtypes_and_configuration_and_no_place(tmp_path):
    model = tiny_models().teacher.model
    before = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.name_or_path != model.config.name_or_path
    assert model_fingerprint(again) == before
    assert model_fingerprint(copy.deepcopy(model).bfloat16()) != before
    model.config.rms_norm_eps = 0.5
    assert model_fingerprint(model) != before


@pytest.mark.parametrize("change", [{"eos": "</s>"}, {"alphabet": ALPHABET + "q"}, {"alphabet": ALPHABET[::-1]}])
def test_the_tokenizers_fingerprint(change):
    given = {"alphabet": ALPHABET}
    tokenizer = CharacterTokenizer(**given).load()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["ab", "c"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before, "calls leave traces in a serialised tokenizer"
    assert tokenizer_fingerprint(CharacterTokenizer(**given, pad="<fill>").load()) != before, "it is in the vocabulary"
    assert tokenizer_fingerprint(CharacterTokenizer(**given | change).load()) != before


@pytest.mark.parametrize("k", [0, VOCABULARY, VOCABULARY + 7])
def test_k_must_leave_a_tail(models, tmp_path, k):
    with pytest.raises(ConfigurationError, match=f"`--k` must lie between 1 and {VOCABULARY - 1}.*got {k}"):
        write(tmp_path, models, k=k)
    assert not list(tmp_path.iterdir())


def full_rows(models):
    """Student's and teacher's log-probabilities of every completion token, by their plain forward."""
    pairs = []
    for row in encoded(models):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            logits = [m.model(ids).logits[0, len(row.prompt_ids) - 1 : -1] for m in (models.student, models.teacher)]
        pairs.append([x[:, : models.student.vocab_size].double().log_softmax(-1) for x in logits])
    return (torch.cat(part) for part in zip(*pairs, strict=True))


def test_the_cost_is_that_of_a_direct_computation(models, tmp_path):
    means = write(tmp_path, models, k=5, batch_size=3, chunk_rows=7).cost.means()
    student, teacher = full_rows(models)
    order = teacher.argsort(-1, descending=True)
    student, teacher = student.gather(1, order), teacher.gather(1, order)

    def pooled(logp):
        return torch.cat([logp[:, :5], logp[:, 5:].logsumexp(-1, keepdim=True)], -1)

    expected = {
        "tokens": len(teacher),
        "tail_mass": teacher[:, 5:].exp().sum(-1).mean(),
        "largest_tail_mass": teacher[:, 5:].exp().sum(-1).max(),
        "entropy": -(teacher.exp() * teacher).sum(-1).mean(),
        "kept_entropy": -(pooled(teacher).exp() * pooled(teacher)).sum(-1).mean(),
        "forward_kl": forward_kl(student, teacher).mean(),
        "kept_forward_kl": forward_kl(pooled(student), pooled(teacher)).mean(),
        "reverse_kl": reverse_kl(student, teacher).mean(),
        "kept_reverse_kl": reverse_kl(pooled(student), pooled(teacher)).mean(),
    }
    assert means == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    for name in ("entropy", "forward_kl", "reverse_kl"):
        assert 0 < means[f"kept_{name}"] < means[name], "pooling loses something and never gains"


def test_with_one_id_in_the_tail_nothing_is_lost(models, tmp_path):
    means = write(tmp_path, models, k=VOCABULARY - 1).cost.means()
    for name in ("entropy", "forward_kl", "reverse_kl"):
        assert means[f"kept_{name}"] == pytest.approx(means[name], rel=1e-6)


def test_costs_add_up_however_the_tokens_are_split(models):
    student, teacher = full_rows(models)
    ids = teacher.topk(3).indices
    kept = TopKScores(ids, top_k_with_tail(teacher, ids))
    whole = TruncationCost.measure(student, teacher, kept)
    parts = [TruncationCost.measure(student[i : i + 4], teacher[i : i + 4], kept[i : i + 4]) for i in range(0, 99, 4)]
    assert TruncationCost.total(parts).means() == pytest.approx(whole.means())
