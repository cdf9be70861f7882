"""An export is there whole or not at all, takes nobody else's files away, and holds what was trained."""

import errno
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from veto_pl.commands.export import export_checkpoint
from veto_pl.commands.main import main
from veto_pl.core.special_ids import state_special_ids
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Pretrained, Pruned
from veto_pl.models.assemble import load_student
from veto_pl.models.blueprint import BLUEPRINT, saved_files
from veto_pl.models.export_folder import CARD_SENTENCE, check_folder, export_student
from veto_pl.models.model_card import CARD
from veto_pl.seams import ModelSource
from veto_pl.storage.checksums import SUMS, read_sums, sha256_of
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, tiny_source

from .faults import fit

TOKENIZER = CharacterTokenizer(ALPHABET).load()
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym")


def export(folder, seed=0):
    return export_student(load_student(tiny_source(seed=seed), TOKENIZER), TOKENIZER, None, folder)


def state(folder):
    """Which export is there: None, or the seed of a whole one."""
    if not folder.exists():
        return None
    sums = read_sums(folder)
    assert {path.name: sha256_of(path) for path in folder.iterdir() if path.name != SUMS} == sums
    weights = Pretrained(str(folder)).load().state_dict()
    (seed,) = (s for s in (0, 1) if torch.equal(weights["lm_head.weight"], tiny_source(seed=s).load().lm_head.weight))
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == TOKENIZER.get_vocab()
    return seed


def stopping_at(number, action):
    """Does `action` in place of the n-th change of a file, before it happens; gives the number of changes so far."""
    changes = 0

    def hook(event, args):
        nonlocal changes
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in CHANGES:
            changes += 1
            if changes == number:
                action()

    sys.addaudithook(hook)
    return lambda: changes


def dying():
    os._exit(9)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("action", [dying, full])
@pytest.mark.parametrize("earlier", [None, 0])
def test_an_export_that_is_cut_anywhere_is_whole_or_not_there(earlier, action, tmp_path):
    """In a process of its own, which dies, or whose disk is full, at its n-th change of a file."""
    out, seen, reached = tmp_path / "out", [], True
    while reached:
        if earlier is not None and state(out) != earlier:
            export(out, earlier)
        elif earlier is None and out.exists():
            shutil.rmtree(out)
        reached = cut(out, len(seen) + 1, action)
        seen.append(state(out))
    assert len(seen) > 12
    assert seen[-1] == 1
    assert set(seen) == {earlier, 1}
    assert seen.count(earlier) > 6
    export(out, 0)
    assert state(out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what a kill left is removed by the next export"


def cut(folder, number, action):
    """Whether the export got as far as that."""
    child = os.fork()
    if child == 0:
        changes = stopping_at(number, action)
        with suppress(Exception):
            export(folder, 1)
        os._exit(9 if changes() >= number else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_an_export_replaces_an_earlier_one_in_one_piece(tmp_path):
    export(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "model-00001-of-00002.safetensors")
    names = (tmp_path / "out" / SUMS).read_text().replace("  model.safe", "  model-00001-of-00002.safe")
    (tmp_path / "out" / SUMS).write_text(names)
    export(tmp_path / "out", 1)
    assert state(tmp_path / "out") == 1
    os.symlink(tmp_path / "out", tmp_path / "link")
    export(tmp_path / "link", 0)
    assert state(tmp_path / "out") == 0
    assert (tmp_path / "link").is_symlink()


def test_what_no_export_has_written_is_never_removed(tmp_path, monkeypatch):
    for name in ("thesis.tex", "original/notes.md", "weights.safetensors"):
        export(tmp_path / "out")
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(ConfigurationError, match=f"holds `{name}`, which no export has written.* Name a new one"):
            export(tmp_path / "out", 1)
        assert (tmp_path / "out" / name).read_text() == "mine"
        shutil.rmtree(tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file"):
        export(tmp_path / "file")
    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "inner")
    for folder in (".", "..", "/", tmp_path):
        with pytest.raises(ConfigurationError, match="is the current folder, around it, or a mount point"):
            export(folder)
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty")
    assert state(tmp_path / "empty") == 0


def test_an_export_of_an_earlier_version_is_replaced(tmp_path):
    """It has a card and no checksums."""
    export(tmp_path / "out")
    (tmp_path / "out" / SUMS).unlink()
    export(tmp_path / "out", 1)
    assert state(tmp_path / "out") == 1
    (tmp_path / "out" / SUMS).unlink()
    for name in ("student.gguf", "notes.txt", "scores.json"):
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(ConfigurationError, match=f"holds `{name}`"):
            check_folder(tmp_path / "out")
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "README.md").write_text("A model of another tool.")
    with pytest.raises(ConfigurationError, match="which no export has written"):
        check_folder(tmp_path / "out")
    assert CARD_SENTENCE in CARD


def test_a_run_whose_export_would_remove_something_does_not_begin(config_file, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.tex").write_text("mine")
    with pytest.raises(SystemExit, match=r"holds `thesis\.tex`"):
        fit(config_file, tmp_path, "--export.folder=export", "--validate_first=false")
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def untied(tmp_path):
    """A folder whose configuration ties head and embedding, and whose file has two matrices."""
    folder = tmp_path / "untied"
    model = tiny_source(tie_word_embeddings=True).load()
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(weights["model.embed_tokens.weight"].shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def divergence(one, other):
    """The largest KL in nats between what two folders say, and what the configuration of the second ties."""
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for folder in (one, other))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        logp, other_logp = (model(ids).logits.log_softmax(-1) for model in (first, second))
    return float((logp.exp() * (logp - other_logp)).sum(-1).abs().max()), second.config.tie_word_embeddings


@pytest.mark.parametrize("kept", ["blueprint", "config"])
def test_two_matrices_that_a_configuration_ties_are_exported_as_two(kept, untied, config_file, tmp_path):
    student = ["--model.student=Pretrained", f"--model.student.path={untied}", "--model.tokenizer=null"]
    data = ["--model.teacher=null", "--model.objective=SFT", "--trainer.max_steps=2", "--validate_first=false"]
    fit(config_file, tmp_path, *student, *data, "--export.folder=export")
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    config = (tmp_path / "config.yaml").read_text() if kept == "config" else None
    export_checkpoint(checkpoint, tmp_path / "again", config)
    assert divergence(tmp_path / "export", tmp_path / "again") == (0.0, False)
    assert divergence(untied, tmp_path / "again")[0] > 0
    weights = load_file(tmp_path / "again" / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_what_is_tied_stays_tied(tmp_path):
    student = load_student(tiny_source(tie_word_embeddings=True), TOKENIZER)
    export_student(student, TOKENIZER, None, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings


def checkpoint(path, model, tokenizer=TOKENIZER, **entries):
    """A file such as a run writes, of a student that was not trained."""
    weights = {f"student.model.{name}": weight for name, weight in model.state_dict().items()}
    described = {BLUEPRINT: saved_files(model, tokenizer)} | entries
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.6.0", **described}, path)
    return path


def same(folder, model):
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("family", sorted(DIMENSIONS))
def test_an_export_needs_nothing_of_the_source(family, tmp_path):
    """Only what transformers knows of the architecture: the source may be a plug-in that is not installed here."""
    model = Pruned(tiny_source(family, seed=3), keep_layers=(1,)).load().to(torch.bfloat16)
    model.generation_config.max_length = 77
    export_checkpoint(checkpoint(tmp_path / "a.ckpt", model), tmp_path / "out")
    exported = Pretrained(str(tmp_path / "out"), dtype="auto").load()
    assert same(tmp_path / "out", model)
    assert exported.dtype == torch.bfloat16
    assert exported.generation_config.max_length == 77
    state_special_ids(model, TOKENIZER)
    model.save_pretrained(tmp_path / "direct")
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "direct")]
    assert settings[0] == settings[1]


class OwnLlama(LlamaForCausalLM):
    """A class that the registry of transformers does not know."""


@dataclass(frozen=True)
class Own(ModelSource):
    """A third party's source."""

    def config(self):
        return LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip

    def load(self):
        return OwnLlama(self.config())

    def skeleton(self):
        return self.load()


def test_a_class_that_transformers_does_not_know_is_made_by_its_source(tmp_path, config_file):
    model = Own().load()
    path = checkpoint(tmp_path / "a.ckpt", model)
    with pytest.raises(ConfigurationError, match=r"its student is a \['OwnLlama'\].* `--config`"):
        export_checkpoint(path, tmp_path / "out")
    config = yaml.safe_load(Path(config_file).read_text())
    config["model"]["student"] = {"class_path": f"{Own.__module__}.Own"}
    config["model"]["tokenizer"] = {"class_path": "CharacterTokenizer", "init_args": {"alphabet": ALPHABET}}
    export_checkpoint(path, tmp_path / "out", yaml.safe_dump(config))
    assert same(tmp_path / "out", model)


def test_a_checkpoint_of_an_earlier_version_needs_the_configuration(config_file, tmp_path, capsys):
    fit(config_file, tmp_path, "--trainer.max_steps=1", "--validate_first=false")
    path = tmp_path / "checkpoints" / "last.ckpt"
    main(["export", str(path), str(tmp_path / "new")])
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in content.items() if key != BLUEPRINT}, path)
    with pytest.raises(SystemExit, match=r"does not describe its student; an earlier version.* --config runs/mine"):
        main(["export", str(path), str(tmp_path / "old")])
    main(["export", str(path), str(tmp_path / "old"), "--config", str(tmp_path / "config.yaml")])
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("new", "old")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    templates = [AutoTokenizer.from_pretrained(tmp_path / name).chat_template for name in ("new", "old")]
    assert templates[0] == templates[1]
    with pytest.raises(SystemExit, match=r"--config`: given `.*nowhere.yaml`, a path where there is no file"):
        main(["export", str(path), str(tmp_path / "old"), "--config", str(tmp_path / "nowhere.yaml")])


def test_a_configuration_that_describes_no_run_is_told(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "a.ckpt", tiny_source().load())
    (tmp_path / "config.yaml").write_text("model: {student: {class_path: RandomWeights}}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"`--config` describes no run: it has no `data`"):
        main(["export", str(path), str(tmp_path / "out"), "--config=~/config.yaml"])


def test_an_architecture_of_more_layers_than_weights_is_not_made(tmp_path):
    model = tiny_source().load()
    files = saved_files(model, TOKENIZER)
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"num_hidden_layers": 10**9})
    path = checkpoint(tmp_path / "a.ckpt", model, **{BLUEPRINT: files})
    with pytest.raises(ConfigurationError, match="too few for 1000000000 layers"):
        export_checkpoint(path, tmp_path / "out")


def test_a_run_goes_on_whose_student_cannot_be_described(config_file, tmp_path):
    """A third party's tokenizer may refuse to be saved, or write what no export would read."""

    def write(self, folder, *args, **kwargs):
        Path(folder, "vocab.pkl").write_bytes(b"")

    with (
        patch("transformers.PreTrainedTokenizerFast.save_pretrained", write),
        pytest.warns(UserWarning, match=r"do not describe the student.* file of an unknown kind, `vocab\.pkl`"),
    ):
        fit(config_file, tmp_path, "--trainer.max_steps=1", "--validate_first=false")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)[BLUEPRINT] is None


def test_the_weights_of_another_student_are_named(tmp_path):
    model = tiny_source().load()
    path = checkpoint(
        tmp_path / "a.ckpt", model, **{BLUEPRINT: saved_files(tiny_source(hidden_size=8).load(), TOKENIZER)}
    )
    with pytest.raises(ConfigurationError, match=r"The weights of `.*a\.ckpt` are not those of its student"):
        export_checkpoint(path, tmp_path / "out")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({marker!r}, "a").write("ran")
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A file whose student has code of its own, as a run with `trust_remote_code: true` writes it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "model", tmp_path / "RAN"
    tiny_source(seed=4).load().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    told = config | {"model_type": "own-llama", "auto_map": names, "architectures": ["OwnModel"]}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    path = checkpoint(tmp_path / "a.ckpt", Pretrained(str(folder), trust_remote_code=True).load())
    marker.unlink()
    return path, marker


def test_code_of_a_student_runs_with_a_flag_only(with_code, tmp_path):
    path, marker = with_code
    with pytest.raises(SystemExit, match=r"The student of `.*a\.ckpt` cannot be made.*`--trust_remote_code`"):
        main(["export", str(path), str(tmp_path / "out")])
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    main(["export", str(path), str(tmp_path / "out"), "--trust_remote_code"])
    assert marker.exists()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], tiny_source(seed=4).load().lm_head.weight)
    assert (tmp_path / "out" / "code.py").is_file()


BROKEN = {
    "an unknown architecture": ("config.json", {"model_type": "nope"}),
    "code for a tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}),
    "a tokenizer of no known class": ("tokenizer_config.json", {"tokenizer_class": "os.system"}),
    "a model as tokenizer": ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}),
    "a kernel": ("config.json", {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_description_that_asks_for_more_than_transformers_knows(kind, tmp_path):
    """Refused, or left out: a class of transformers does it as well, and weights are copied without kernels."""
    model, (name, change) = tiny_source(seed=2).load(), BROKEN[kind]
    files = saved_files(model, TOKENIZER)
    files[name] = json.dumps(json.loads(files[name]) | change)
    files["merges.txt"] = ""  # an empty file leaves a checkpoint that can be read
    files["evil.py"] = f"open({str(tmp_path / 'RAN')!r}, 'w')"
    path = checkpoint(tmp_path / "a.ckpt", model, **{BLUEPRINT: files})
    try:
        export_checkpoint(path, tmp_path / "out")
    except ConfigurationError as error:
        told = str(error)
        assert "The student of `" in told
        assert "a.ckpt` cannot be made" in told
    else:
        assert kind in ("a kernel", "a tokenizer of no known class", "code for a tokenizer")
        assert same(tmp_path / "out", model)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "files", [{"../escaped.json": "{}"}, {"/tmp/escaped.json": "{}"}, {"a/b/c.json": "{}"}, {"weights.bin": ""},
              {"config.json": "text"}, {"config.json": 3}, {"config.json": b"x"}, {"config.json": chr(300)}, {3: ""},
              {"..": ""}, [], "x", {}],
    ids=repr,
)  # fmt: skip
def test_a_description_is_files_in_one_folder(files, tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", tiny_source().load(), **{BLUEPRINT: files})
    with pytest.raises(ConfigurationError, match=r"a\.ckpt` (is damaged: it does not describe|cannot be made)"):
        export_checkpoint(path, tmp_path / "out")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.ckpt"]


@pytest.mark.parametrize(
    "refused", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("(os error 28)")]
)
def test_an_export_that_the_disk_refuses_is_told_in_a_sentence(refused, tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "a.ckpt", tiny_source().load())

    def fails(*args, **kwargs):
        raise refused

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fails)
    with pytest.raises(SystemExit, match=r"veto-pl: The export `.*out` could not be written: .*No space left"):
        main(["export", str(path), str(tmp_path / "out")])
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.ckpt"]
