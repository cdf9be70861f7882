"""Runs with an adapter: what their checkpoints hold, how they go on, and what `veto-pl export` makes of them."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.debug_runs import arguments
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Checkpoints, Export
from veto_pl.commands.export import export_checkpoint
from veto_pl.commands.main import main
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, InMemory, Lora, MovingAverage, StudentBase
from veto_pl.models.described import described, rebuilt
from veto_pl.models.export_folder import export_student
from veto_pl.objectives import SFT, Veto
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source
from veto_pl.training.adapter_checkpoints import ADAPTER

LORA = Lora(tiny_source(), rank=2, dropout=0.1, modules_to_save=("lm_head",))
QUICK = ["--validate_first=false", "--trainer.limit_val_batches=0", "--trainer.max_steps=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a debug run with an adapter."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    main(["fit", *arguments("lora"), f"--run_dir={folder}", *QUICK])
    return folder


def same_weights(one, other):
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_holds_the_adapter_alone(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["state_dict"]) == 14
    assert all("lora_" in name for name in saved["state_dict"])
    assert len(saved["optimizer_states"][0]["state"]) == 14
    assert saved[ADAPTER]["student"]["class"] == "Lora"


def test_the_command_exports_what_the_run_did(run, tmp_path):
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "again")])
    assert same_weights(run / "export", tmp_path / "again")
    config = (run / "config.yaml").read_text()
    export_checkpoint(run / "checkpoints" / "last.ckpt", tmp_path / "config", config)
    assert same_weights(run / "export", tmp_path / "config")
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "apart"), "--adapter", "separate"])
    assert (tmp_path / "apart" / "adapter_model.safetensors").is_file()
    assert "lora_A" not in "".join(load_file(run / "export" / "model.safetensors"))


@pytest.mark.slow
def test_the_command_needs_nothing_of_the_folder_that_the_run_was_started_in(run, tmp_path, monkeypatch):
    """A base that was named by a relative path is found from anywhere."""
    tiny = tiny_source(vocab_size=56, max_position_embeddings=1024)
    tiny.load().save_pretrained(tmp_path / "here" / "base")
    tokenizer = yaml.safe_load((run / "config.yaml").read_text())["model"]["tokenizer"]["init_args"]["alphabet"]
    CharacterTokenizer(tokenizer).load().save_pretrained(tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    options = ["--model.student.source=./base", "--model.objective=SFT", "--model.teacher=null", "--run_dir=run"]
    main(["fit", *arguments("lora"), *options, *QUICK])
    monkeypatch.chdir("/")
    export_checkpoint(tmp_path / "here/run/checkpoints/last.ckpt", tmp_path / "again")
    assert same_weights(tmp_path / "here/run/export", tmp_path / "again")


def test_another_base_is_refused_and_not_trained_on(run, tmp_path):
    last = str(run / "checkpoints" / "last.ckpt")
    option = "--model.student.source.seed=1"
    with pytest.raises(
        SystemExit, match=r"trained beside other weights: \d+ of \d+ weights of the base differ, for instance"
    ):
        main(["fit", *arguments("lora"), f"--run_dir={tmp_path}", f"--ckpt_path={last}", option, *QUICK])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["student"]["init_args"]["source"]["init_args"]["seed"] = 1
    with pytest.raises(ConfigurationError, match="trained beside other weights"):
        export_checkpoint(last, tmp_path / "out", yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=r"holds an adapter, but `model.student` has none"):
        main(["validate", *arguments("sft"), f"--run_dir={tmp_path}", f"--ckpt_path={last}"])


def rows(folder):
    path = Path(folder, "rows.jsonl")
    path.write_text("".join(f'{{"prompt": "{w}>", "completion": "{w[::-1]}"}}\n' for w in ("abc", "de", "ponm", "ghi")))
    return str(path)


def fit(folder, student, teacher, objective=None, **trainer):
    """Two steps from Python; the module and its trainer."""
    file = rows(folder)
    module = DistillationModule(
        objective or Veto(rollout=FromStudent(Sampling(max_new_tokens=4))),
        student,
        teacher,
        tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        evaluation=Sampling(temperature=0.0, max_new_tokens=3),
    )
    data = PromptDataModule(
        JsonLines(train=file, validation=file, verifier=ExactMatch()),
        batch_size=2,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    settings = {"max_steps": 2, "limit_val_batches": 0, "callbacks": [Checkpoints(dirpath=str(folder))]}
    runner = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, default_root_dir=str(folder), **settings | trainer,
    )  # fmt: skip
    runner.fit(module, data)
    return module, runner


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "bf16-mixed"])
@pytest.mark.parametrize(
    "teacher", [StudentBase(), MovingAverage(LORA), tiny_source(seed=1)], ids=["base", "average", "other"]
)
def test_teachers_of_an_adapter_teach_it(teacher, precision, tmp_path):
    module, _ = fit(tmp_path, LORA, teacher, precision=precision, accumulate_grad_batches=2)
    start = module.student_source.load().state_dict()
    moved = {name for name, weight in module.student.model.state_dict().items() if not torch.equal(weight, start[name])}
    trained = {name for name, weight in module.student.model.named_parameters() if weight.requires_grad}
    assert moved <= trained
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    roles = {"student", "teacher"} if module.teacher_source.moves else {"student"}
    assert {name.split(".")[0] for name in saved} == roles
    assert len(saved) == len(roles) * len(trained)


def test_an_average_of_an_adapter_comes_back_with_the_run(tmp_path):
    module, _ = fit(tmp_path, LORA, MovingAverage(LORA, decay=0.3), SFT())
    before = {name: weight.clone() for name, weight in module.models.teacher.state_dict().items()}
    assert any(not torch.equal(w, module.student.state_dict()[n]) for n, w in before.items())
    again, runner = fit(
        tmp_path, LORA, MovingAverage(LORA, decay=0.3), SFT(), max_steps=1, limit_val_batches=1, callbacks=[]
    )
    task = JsonLines(train=rows(tmp_path), validation=rows(tmp_path))
    data = PromptDataModule(task, batch_size=2, max_prompt_tokens=32, max_completion_tokens=32)
    runner.validate(again, data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    for name, weight in again.models.teacher.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_base_in_memory_is_exported_at_the_end_and_told_afterwards(tmp_path):
    model = tiny_source().load()
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    student = Lora(InMemory(model), targets=("q_proj",))
    module, _ = fit(
        tmp_path, student, tiny_source(seed=1), callbacks=[Checkpoints(dirpath=str(tmp_path)), Export("out")]
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert all(
        torch.equal(w, start[n.replace(".base_layer", "")]) for n, w in model.state_dict().items() if "lora" not in n
    )
    assert described(module.student_source) is None
    with pytest.raises(ConfigurationError, match="a source that is not of this package"):
        export_checkpoint(tmp_path / "last.ckpt", tmp_path / "again")


def test_the_best_checkpoint_of_an_adapter_is_exported(tmp_path):
    """In the place of the last one, which the module keeps."""
    kept = Checkpoints(dirpath=str(tmp_path), monitor="train/loss", save_top_k=1, every_n_train_steps=1, mode="min")
    module, _ = fit(tmp_path, LORA, tiny_source(seed=1), SFT(), callbacks=[kept, Export("out", "best")], max_steps=3)
    assert "step=3" not in kept.best_model_path
    export_checkpoint(kept.best_model_path, tmp_path / "again")
    assert same_weights(tmp_path / "out", tmp_path / "again")
    export_student(module.student, module.tokenizer, None, tmp_path / "last")
    assert not same_weights(tmp_path / "out", tmp_path / "last")


def test_what_a_checkpoint_says_of_a_source_is_made_again_and_nothing_else():
    source = Lora(tiny_source(), targets=("q_proj",), start=None)
    assert rebuilt(described(source), trust_remote_code=False) == source
    remote = {"class": "Pretrained", "settings": {"path": "a/b", "trust_remote_code": True}}
    assert not rebuilt(remote, trust_remote_code=False).trust_remote_code
    nested = remote
    for _ in range(12):
        nested = {"class": "Pruned", "settings": {"source": nested, "keep_layers": [0]}}
    for hostile in (
        None,
        {"class": "os.system", "settings": {"command": "true"}},
        {"class": "InMemory", "settings": {"model": 1}},
        {"class": "Lora", "settings": {"source": {"class": "Popen", "settings": {}}}},
        {"class": "Lora", "settings": {"source": 3}},
        {"class": "Pretrained", "settings": {}},
        nested,
    ):
        with pytest.raises(ConfigurationError):
            rebuilt(hostile, trust_remote_code=False)


@pytest.mark.slow
def test_a_compiled_loss_head_trains_an_adapter_alike(tmp_path):
    curves = []
    for compiled in (False, True):
        objective = Veto(rollout=FromStudent(Sampling(max_new_tokens=4)), compile=compiled)
        module, _ = fit(tmp_path, LORA, tiny_source(seed=1), objective)
        curves.append(module.logged["train/loss"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
