"""What is read from a store is what the teacher says, and damage of any kind is named."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from veto_pl.data.collate import Collator
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.objectives import OPD, Veto
from veto_pl.offline import ScoreStore, open_store
from veto_pl.offline.manifest import NAME, Manifest
from veto_pl.rollouts import FromCache, FromDataset, Mixture
from veto_pl.seams import Models, Step
from veto_pl.storage.checksums import sha256_of
from veto_pl.testing.tiny import ALPHABET

from .conftest import WORDS, direct, encoded, write

STEP = Step(0, 1)
VOCABULARY = len(ALPHABET) + 3


@settings(max_examples=15)
@given(
    words=st.lists(st.text(ALPHABET[1:], max_size=9), min_size=1, max_size=9),
    k=st.integers(1, VOCABULARY - 1),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    rows_per_shard=st.integers(1, 6),
    batch_size=st.integers(1, 5),
    chunk_rows=st.integers(1, 20),
)
def test_what_is_read_is_what_the_teacher_says(models, words, k, temperature, rows_per_shard, batch_size, chunk_rows):
    rows = encoded(models, words)
    with tempfile.TemporaryDirectory() as folder:
        write(
            Path(folder), models, rows, k=k, temperature=temperature, rows_per_shard=rows_per_shard,
            batch_size=batch_size, chunk_rows=chunk_rows,
        )  # fmt: skip
        store = ScoreStore(folder)
        assert len(store) == len(set(words))
        for row in rows:
            scores, expected = store.find(row.prompt_ids, row.completion_ids), direct(models, row, k, temperature)
            assert scores.temperature == temperature
            assert torch.equal(scores.ids, expected.ids)
            torch.testing.assert_close(scores.logp.double(), expected.logp, rtol=1e-6, atol=1e-6)
            assert store.find(row.prompt_ids + row.completion_ids[:1], row.completion_ids[1:]) is None


def test_the_rollout_is_that_of_the_dataset_with_the_scores_beside_each_token(models, tmp_path):
    write(tmp_path, models, k=5, temperature=2.0)
    rows = encoded(models)[2:7]
    batch = Collator(tokenizer=models.tokenizer).pad(rows)
    cached, plain = FromCache(str(tmp_path))(batch, models, STEP), FromDataset()(batch, models, STEP)
    for name in ("input_ids", "attention_mask", "loss_mask", "prompt_rows", "on_policy"):
        assert torch.equal(getattr(cached, name), getattr(plain, name))
    scores = cached.teacher_scores
    assert scores.temperature == 2.0
    assert scores.ids.shape == (*plain.input_ids.shape, 5)
    assert scores.logp.shape == (*plain.input_ids.shape, 6)
    logits = models.teacher(plain, lambda hidden, teacher: teacher.project(hidden)[0])
    logp = torch.log_softmax(logits / 2.0, -1)
    predicted = scores[plain.loss_mask]
    assert torch.equal(predicted.ids, logp.topk(5).indices)
    torch.testing.assert_close(predicted.logp, top_k_with_tail(logp, predicted.ids).float(), rtol=1e-6, atol=1e-6)
    # Elsewhere stands something that breaks no gather and no exponential.
    torch.testing.assert_close(scores.logp.exp().sum(-1), torch.ones_like(plain.input_ids, dtype=torch.float32))
    assert (scores.ids.sort(-1).values.diff(dim=-1) > 0).all()


def test_the_store_tells_the_teachers_log_probability_of_each_token(models, tmp_path):
    write(tmp_path, models, k=3)
    batch = Collator(tokenizer=models.tokenizer).pad(encoded(models)[:5])
    cached = FromCache(str(tmp_path))(batch, models, STEP)
    logits = models.teacher(cached, lambda hidden, teacher: teacher.project(hidden)[0])
    expected = torch.log_softmax(logits, -1).gather(1, cached.token_ids()[:, None])[:, 0].float()
    torch.testing.assert_close(cached.teacher_scores[cached.loss_mask].sampled_logp, expected, rtol=1e-6, atol=1e-6)
    (told,) = FromCache(str(tmp_path)).writings()
    assert told.stored.sampled_logp.shape == (0,)


def as_of_an_earlier_version(folder):
    """Takes out what stores did not hold."""
    manifest = json.loads((folder / NAME).read_text())
    del manifest["identity"]["sampled_logp"]
    for shard in manifest["shards"]:
        tensors = load_file(folder / shard["file"])
        del tensors["sampled_logp"]
        save_file(tensors, folder / shard["file"])
        shard["sha256"] = sha256_of(folder / shard["file"])
    (folder / NAME).write_text(json.dumps(manifest))


def test_a_store_of_an_earlier_version_teaches_divergences_and_no_policy_gradient(models, tmp_path):
    write(tmp_path, models, k=3)
    source = FromCache(str(tmp_path))
    batch = Collator(tokenizer=models.tokenizer).pad(encoded(models)[:5])
    before = source(batch, models, STEP).teacher_scores
    assert not OPD(rollout=source, importance_cap=None).needs_teacher
    as_of_an_earlier_version(tmp_path)
    after = source(batch, models, STEP).teacher_scores
    assert after.sampled_logp is None
    assert torch.equal(after.logp, before.logp)
    assert not Veto(rollout=source).needs_teacher
    with pytest.raises(ConfigurationError, match=r"of an earlier version\. Write it again with `veto-pl"):
        OPD(rollout=source, importance_cap=None)


def test_rows_without_a_reference_train_on_nothing(models, tmp_path):
    write(tmp_path, models)
    batch = Collator(tokenizer=models.tokenizer)(
        [example for row in encoded(models)[:1] for example in (row.example, type(row.example)("never seen>"))]
    )
    sequences = FromCache(str(tmp_path))(batch, models, STEP)
    assert sequences.predictions.sum(1).tolist() == [len("abc") + 1, 0]
    with pytest.raises(DataError, match="None of the 1 rows has a reference completion"):
        write(tmp_path, models, Collator(tokenizer=models.tokenizer).encode([type(batch.examples[0])("abc>")]))


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_shard_is_named_and_repaired(models, tmp_path, damage):
    write(tmp_path, models)
    whole = [path.read_bytes() for path in shards(tmp_path)]
    damage(shards(tmp_path)[1])
    with pytest.raises(DataError, match=r"shard-00001\.safetensors` is damaged.*Run `veto-pl cache-teacher`"):
        ScoreStore(tmp_path)
    said = []
    write(tmp_path, models, say=said.append)
    assert said[0] == "shard-00001.safetensors is damaged and will be rebuilt"
    assert [path.read_bytes() for path in shards(tmp_path)] == whole
    assert len(ScoreStore(tmp_path)) == len(WORDS)


def test_a_missing_manifest_is_named_when_the_config_is_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"holds no manifest\.json.*cache-teacher"):
        FromCache(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"holds no manifest\.json"):
        open_store(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(DataError, match=r"cannot be read as a manifest of format 1.*Delete the folder"):
        FromCache(str(tmp_path))


def test_an_incomplete_store_is_named_when_the_config_is_read(models, tmp_path):
    write(tmp_path, models)
    content = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(content | {"complete": False}))
    with pytest.raises(ConfigurationError, match=f"interrupted after {len(WORDS)} rows. Run it again"):
        FromCache(str(tmp_path))


def test_another_tokenizer_is_refused(models, tmp_path):
    write(tmp_path, models)
    batch = Collator(tokenizer=models.tokenizer).pad(encoded(models)[:2])
    other = Models(models.student, None, CharacterTokenizer(ALPHABET[::-1]).load())
    with pytest.raises(ConfigurationError, match="written with another tokenizer"):
        FromCache(str(tmp_path))(batch, other, STEP)


def test_a_row_that_was_never_scored_is_named(models, tmp_path):
    write(tmp_path, models, encoded(models, ["abc", "bca"]))
    batch = Collator(tokenizer=models.tokenizer).pad(encoded(models, ["abc", "p" * 90]))
    with pytest.raises(DataError, match=r"\(2 rows\) has no scores .*'p{77}\.\.\.' \(91 prompt and 91 completion tok"):
        FromCache(str(tmp_path))(batch, models, STEP)
    with pytest.raises(DataError, match=r"veto-pl cache-teacher --config .* --out "):
        FromCache(str(tmp_path))(batch, models, STEP)


def test_a_store_is_verified_once_and_again_when_it_was_rewritten(models, tmp_path):
    write(tmp_path, models, encoded(models, ["abc"]))
    first = open_store(str(tmp_path))
    assert open_store(str(tmp_path)) is first
    write(tmp_path, models, encoded(models, ["abc", "bca"]))
    assert len(open_store(str(tmp_path))) == 2


def test_the_source_is_its_path(models, tmp_path):
    write(tmp_path, models)
    one, other = FromCache(str(tmp_path)), FromCache(str(tmp_path))
    assert one == other
    assert hash(one) == hash(other)
    assert one.stored_teacher
    assert not FromDataset().stored_teacher


def test_a_mixture_refuses_it(models, tmp_path):
    write(tmp_path, models)
    with pytest.raises(ConfigurationError, match=r"`Mixture` cannot hold `FromCache`"):
        Mixture(second=FromCache(str(tmp_path)))


def test_the_manifest_says_what_is_inside(models, tmp_path):
    written = write(tmp_path, models, k=5, temperature=2.0)
    read = Manifest.read(tmp_path)
    assert read == written
    assert (read.identity.k, read.identity.temperature, read.complete) == (5, 2.0, True)
    assert [shard.rows for shard in read.shards] == [4, 4, 3]
    assert sum(shard.tokens for shard in read.shards) == sum(len(word) + 1 for word in WORDS)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in tmp_path.iterdir())
