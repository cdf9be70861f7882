"""One flipped bit of a checkpoint or of exported weights is noticed, or has changed nothing."""

import shutil
import zipfile

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models import CharacterTokenizer, Pretrained
from veto_pl.models.assemble import load_student
from veto_pl.models.export_folder import export_student
from veto_pl.models.weights import SafetensorsWeights
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from veto_pl.storage.checksums import SUMS
from veto_pl.storage.sharded_checkpoint import PLAIN, TABLE, check_sharded, plain_values, read_whole, save_sharded
from veto_pl.testing.tiny import ALPHABET, tiny_source

BITS = st.integers(0, 2**40)


def content():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"student.w{i}": torch.randn(20, 30, generator=generator) for i in range(3)}
    plain = {"global_step": 7, "veto_pl_config": "seed_everything: 1\n", "names": ["a", b"b"], "epoch": 0.5}
    return tensors, {"pytorch-lightning_version": "2.6.0", **plain}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tensors, plain = content()
    path = tmp_path_factory.mktemp("file") / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": tensors, **plain}, path)
    return path


def test_a_compressed_part_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    """PyTorch compresses nothing, and a small file may stand for an endless one."""
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1000)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("it is inflated"))
    with pytest.raises(ConfigurationError, match=r"its part archive/data\.pkl is damaged"):
        read_checkpoint(tmp_path / "bomb.ckpt")


@given(bit=BITS)
def test_a_flipped_bit_of_a_file_is_refused_or_changes_nothing(bit, file):
    spoiled = file.with_name("spoiled.ckpt")
    spoiled.write_bytes(flipped(file.read_bytes(), bit))
    try:
        read = read_checkpoint(spoiled)
    except ConfigurationError:
        return
    assert equal(read, read_checkpoint(file))


def test_every_flipped_bit_of_a_directory_entry_is_refused_or_changes_nothing(file):
    """PyTorch gives arbitrary numbers for a tensor that one of these bits calls a folder."""
    data, sound = file.read_bytes(), read_checkpoint(file)
    end = data.rindex(b"archive/data/0") + len(b"archive/data/0")
    bits = range(8 * data.rindex(b"PK\1\2", 0, end), 8 * end)
    spoiled, refused = file.with_name("spoiled.ckpt"), 0
    for bit in bits:
        spoiled.write_bytes(flipped(data, bit))
        try:
            assert equal(read_checkpoint(spoiled), sound), bit
        except ConfigurationError:
            refused += 1
    assert refused > len(bits) / 4


@given(bit=st.integers(0, 8 * 4 * 600 - 1))
def test_every_flipped_bit_of_a_weight_is_noticed(bit, file):
    """PyTorch alone notices none of them."""
    data, weight = file.read_bytes(), content()[0]["student.w1"].numpy().tobytes()
    start = data.index(weight)
    spoiled = file.with_name("spoiled.ckpt")
    spoiled.write_bytes(flipped(data, 8 * start + bit))
    assert not equal(torch.load(spoiled, weights_only=True), torch.load(file, weights_only=True))
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_checkpoint(spoiled)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tensors, plain = content()
    path = tmp_path_factory.mktemp("folder") / "last.ckpt"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    save_sharded(path, {"state_dict": tensors}, plain)
    dist.destroy_process_group()
    return path


def read_folder(path):
    check_sharded(path)
    return {"plain": plain_values(path), "weights": read_whole(path, "state_dict.")}


@given(bit=BITS, name=st.sampled_from(["__0_0.distcp", PLAIN, TABLE, SUMS]))
def test_a_flipped_bit_of_a_folder_is_refused_or_changes_nothing(bit, name, folder):
    spoiled = folder.with_name("spoiled.ckpt")
    shutil.rmtree(spoiled, ignore_errors=True)
    shutil.copytree(folder, spoiled)
    assert equal(read_folder(spoiled), read_folder(folder))
    (spoiled / name).write_bytes(flipped((spoiled / name).read_bytes(), bit))
    try:
        read = read_folder(spoiled)
    except ConfigurationError:
        return
    assert name == SUMS
    assert equal(read, read_folder(folder))


def test_a_folder_without_a_part_or_of_an_earlier_version(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt" / "__0_0.distcp").unlink()
    with pytest.raises(ConfigurationError, match=r"`__0_0\.distcp` is not what was written"):
        read_folder(tmp_path / "a.ckpt")
    shutil.copytree(folder, tmp_path / "b.ckpt")
    (tmp_path / "b.ckpt" / SUMS).unlink()
    with pytest.warns(UserWarning, match="has no checksums"):
        assert equal(read_folder(tmp_path / "b.ckpt"), read_folder(folder))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    tokenizer = CharacterTokenizer(ALPHABET).load()
    return export_student(
        load_student(tiny_source(), tokenizer), tokenizer, None, tmp_path_factory.mktemp("export") / "out"
    )


def read_parts(path):
    """As the ranks of a sharded run do."""
    stored = SafetensorsWeights.find(str(path))
    stored.check(slice(None))
    return dict(stored.parts(dict.fromkeys(stored.files)))


@given(bit=BITS, name=st.sampled_from(["model.safetensors", SUMS]))
def test_a_flipped_bit_of_exported_weights_is_refused_or_changes_nothing(bit, name, export):
    spoiled = export.with_name("spoiled")
    shutil.rmtree(spoiled, ignore_errors=True)
    shutil.copytree(export, spoiled)
    (spoiled / name).write_bytes(flipped((spoiled / name).read_bytes(), bit))
    for read in (lambda path: Pretrained(str(path)).load().state_dict(), read_parts):
        try:
            found = read(spoiled)
        except (ConfigurationError, DataError):
            continue
        assert name == SUMS
        assert equal(found, read(export))


def test_a_folder_without_checksums_is_read_as_ever(export, tmp_path):
    shutil.copytree(export, tmp_path / "foreign")
    (tmp_path / "foreign" / SUMS).unlink()
    assert equal(Pretrained(str(tmp_path / "foreign")).load().state_dict(), Pretrained(str(export)).load().state_dict())


def test_weights_that_somebody_replaced_are_told_from_a_model_whose_settings_were_edited(export, tmp_path):
    """Only weights are compared; other files may be edited."""
    shutil.copytree(export, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("My own words.")
    Pretrained(str(tmp_path / "mine")).load()
    tiny_source(seed=5).load().save_pretrained(tmp_path / "mine")
    with pytest.raises(DataError, match=r"or was replaced.* remove `SHA256SUMS` beside it"):
        Pretrained(str(tmp_path / "mine")).load()
