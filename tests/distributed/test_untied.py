"""Two matrices that a configuration ties stay two where ranks read their parts, and damaged files are seen by all."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh

from veto_pl.exceptions import DataError
from veto_pl.models import Pretrained
from veto_pl.models.sharding import Sharding, full_weights
from veto_pl.models.weights import load_sharded
from veto_pl.storage.checksums import sha256_of, write_sums
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import ALPHABET, tiny_source

pytestmark = pytest.mark.xdist_group("ranks")
REAL_IDS = len(ALPHABET) + 3


@dataclass(frozen=True)
class HandedOut(Pretrained):
    """As sources whose files have other names: the first rank reads the model whole."""

    def stored(self):
        return None


def save(folder, *, apart):
    tiny_source(tie_word_embeddings=True).load().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = torch.randn(embedding.shape) if apart else embedding.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def load(folder):
    """On two ranks: the whole weights on the first one, and what each says about a damaged file."""
    dist.init_process_group("gloo")
    sharding = Sharding(init_device_mesh("cpu", (2,)), torch.device("cpu"), whole_to_sample=False)
    found = []
    for name in ("apart", "alike"):
        for source in (Pretrained, HandedOut):
            model = load_sharded(source(str(Path(folder, name))), REAL_IDS, sharding)
            found.append((full_weights(model), model.model.config.tie_word_embeddings))
    try:
        load_sharded(Pretrained(str(Path(folder, "damaged"))), REAL_IDS, sharding)
    except DataError as error:
        found.append(str(error))
    dist.destroy_process_group()
    return found


def test_ranks_read_two_matrices_that_a_configuration_ties(tmp_path):
    expected = [save(tmp_path / name, apart=name == "apart") for name in ("apart", "alike", "damaged")]
    write_sums(tmp_path / "damaged", {"model.safetensors": 64 * "0"})
    write_sums(tmp_path / "apart", {"model.safetensors": sha256_of(tmp_path / "apart" / "model.safetensors")})
    first, second = run_ranks(load, 2, str(tmp_path))
    for (weights, tied), whole in zip(first[:4], [*2 * expected[:1], *2 * expected[1:2]], strict=True):
        assert tied == (whole is expected[1])
        assert ("lm_head.weight" in weights) == (not tied)
        assert all(torch.equal(weight, whole[name]) for name, weight in weights.items())
        assert len(weights) == len(whole) - tied
    assert "model.safetensors` is not the file that the export has written" in first[4]
    assert "another rank says which file" in second[4]
