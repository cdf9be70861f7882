"""Every YAML under configs/ parses and builds; the debug runs reproduce their golden losses."""

import json
import warnings

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from transformers import PreTrainedTokenizerFast, Qwen2Config

from tests.debug_runs import CONFIGS, DEBUG, FILES, GOLDEN, SHARED, debug_run, golden_losses, losses, stopped_at
from veto_pl.checks import RunSetup, check
from veto_pl.cli.build import VetoCLI
from veto_pl.compare.execution import prepare
from veto_pl.compare.jobs import JobFactory
from veto_pl.compare.study_file import load_study
from veto_pl.objectives import SFT, Veto
from veto_pl.parts.schedules import Linear, WarmUp
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import Sampling
from veto_pl.training.fsdp import FullyShard

QUICKSTART = sorted(p.stem for p in (CONFIGS / "quickstart").glob("*.yaml") if p.stem != "base")
COMPARED = sorted((CONFIGS / "compare").glob("*/*.yaml"))
STUDIES = sorted((CONFIGS / "compare").glob("*.yaml"))
STRATEGIES = {"fsdp2": 1, "fsdp2_nodes": 2}
METHODS = sorted(p.stem for p in (CONFIGS / "recipes/methods").glob("*.yaml"))
SMOLLM2 = ("chat", "gsm8k")
SMOLLM2_LORA = ("lora", "served", "served_teacher")
TASKS = {"gsm8k": 0.8, "code": 1.0, "summarisation": 0.3}


def build(*files, options=()):
    """The module and data module that a command line describes."""
    load_plugins()
    arguments = [argument for file in files for argument in ("--config", str(CONFIGS / file))]
    return VetoCLI([*arguments, "--trainer.accelerator", "cpu", "--trainer.devices", "1", *options], run=False)


def parsed_parameters(module):
    with torch.device("meta"):
        module.configure_model()
    models = module.models
    assert all(p.is_meta for p in models.student.parameters())
    return models


def test_every_config_is_covered():
    covered = {f"debug/{n}.yaml" for n in [*FILES, *SHARED]} | {f"quickstart/{n}.yaml" for n in [*QUICKSTART, "base"]}
    covered |= {f"recipes/paper/{n}.yaml" for n in [*TASKS, "base", "bfloat16_weights", "humaneval", "teacher"]}
    covered |= {f"recipes/smollm2_{name}.yaml" for name in (*SMOLLM2, *SMOLLM2_LORA)} | {
        f"recipes/methods/{name}.yaml" for name in METHODS
    }
    covered |= {f"strategy/{name}.yaml" for name in STRATEGIES} | {"recipes/qwen3_tools.yaml"}
    covered |= {f"diffusion/{name}.yaml" for name in ("debug", "compare")}  # tests/diffusion
    covered |= {f"recipes/qwen2_5_vl_{name}.yaml" for name in ("brts", "uni_opd")}  # test_image_recipes.py
    covered |= {f"recipes/{name}.yaml" for name in ("z_image_turbo", "flux2_klein")}  # tests/diffusion/test_recipes.py
    covered |= {str(p.relative_to(CONFIGS)) for p in [*COMPARED, *STUDIES]}
    assert {str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml")} == covered


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", COMPARED, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_what_is_compared_builds_behind_the_base_of_the_quickstart(path):
    others = [f"--model.{role}" for role in ("teacher", "reference")]
    options = [
        option for role in others for option in (f"{role}=RandomWeights", f"{role}.dimensions={{vocab_size: 56}}")
    ]
    cli = build("quickstart/base.yaml", "quickstart/teacher.yaml", path, options=options)
    given = yaml.safe_load(path.read_text())
    parts = {"objective": cli.model.objective, "student": cli.model.student_source, "task": cli.datamodule.task}
    named = {name: part for section in given.values() for name, part in section.items() if name in parts}
    assert named
    assert {name: type(parts[name]).__name__ for name in named} == {n: part["class_path"] for n, part in named.items()}


@pytest.mark.parametrize("file", STUDIES, ids=lambda p: p.stem)
def test_every_study_tells_runs_what_they_can_use(file, tmp_path):
    study = load_study(file)
    jobs = JobFactory(study, file.parent, tmp_path)
    method = study.baseline
    job = jobs.trial(method, study.search.points[-1], study.seeds[0])
    prepare(job)
    cli = build(*job.files, job.folder / "settings.yaml")
    assert cli.model.seed == study.seeds[0]
    rates = [point.get("model.optimizer.init_args.lr") for point in study.search.points]
    if study.searches:
        assert cli.config.model.optimizer.init_args.lr == rates[-1]


def small_qwen_tokenizer(folder):
    """A tokenizer with as many ids as Qwen2's, so that the real row counts are met."""
    from tokenizers import Tokenizer, models

    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    vocabulary = {f"t{i}": i for i in range(151643)} | special
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", unk_token="t0").save_pretrained(folder)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """Folders with the configurations of Qwen2-0.5B-Instruct and Qwen2-7B-Instruct, and no weights."""
    shapes = {
        "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                 "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
        "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
               "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    }  # fmt: skip
    root = tmp_path_factory.mktemp("qwen2")
    for name, shape in shapes.items():
        config = Qwen2Config(**shape, architectures=["Qwen2ForCausalLM"], eos_token_id=151645)
        config.save_pretrained(root / name)
        small_qwen_tokenizer(root / name)
    return root


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_recipes_build_with_the_real_shapes(task, qwen2):
    options = ["--model.student.path", str(qwen2 / "0.5B"), "--model.teacher.path", str(qwen2 / "7B")]
    cli = build("recipes/paper/base.yaml", f"recipes/paper/{task}.yaml", options=options)
    models = parsed_parameters(cli.model)
    assert models.student.head_rows == 151936
    assert models.teacher.head_rows == 152064
    assert models.student.vocab_size == models.teacher.vocab_size == 151646
    assert 490e6 < sum(p.numel() for p in models.student.parameters()) < 500e6
    assert 7.6e9 < sum(p.numel() for p in models.teacher.parameters()) < 7.7e9
    assert not any(p.requires_grad for p in models.teacher.parameters())
    assert not any(name.startswith("teacher") for name, _ in cli.model.named_parameters())

    objective = cli.model.objective
    assert isinstance(objective, Veto)
    assert objective.beta == Linear(TASKS[task], 0.0)
    assert (objective.rollout.sampling.temperature, objective.rollout.sampling.top_p) == (0.5, 0.5)
    assert cli.model.lr_schedule == WarmUp(0.1, Linear(1.0, 0.0))
    assert cli.model.optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 1e-5
    assert models.student.model.config.attention_dropout == 0.1
    assert cli.datamodule.limits["train"] == 1000
    assert {p.dtype for p in models.student.parameters()} == {torch.float32}
    assert {p.dtype for p in models.teacher.parameters()} == {torch.bfloat16}
    assert (cli.trainer.max_epochs, cli.trainer.precision) == (3, "bf16-mixed")
    assert cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches == 8, "the paper's prompts of a step"


def test_the_papers_own_dtype_is_a_variant_that_warns(qwen2):
    options = ["--model.student.path", str(qwen2 / "0.5B"), "--model.teacher.path", str(qwen2 / "7B")]
    cli = build(*(f"recipes/paper/{name}.yaml" for name in ("base", "gsm8k", "bfloat16_weights")), options=options)
    assert cli.trainer.precision == "32-true"
    assert {p.dtype for p in parsed_parameters(cli.model).student.parameters()} == {torch.bfloat16}
    with pytest.warns(UserWarning, match=r"`model.student`: given bfloat16 weights at a learning rate of 1e-05"):
        check(cli.model, cli.datamodule, cli.trainer)
    cli.model.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)
    with warnings.catch_warnings(record=True) as said:
        check(cli.model, cli.datamodule, cli.trainer)
    assert not [one for one in said if "bfloat16" in str(one.message)]


def given(file):
    """What a file itself says."""
    return yaml.safe_load((CONFIGS / file).read_text())


@pytest.mark.parametrize("method", METHODS)
def test_the_recipes_of_the_methods_build_behind_the_papers(method, qwen2):
    files = ("recipes/paper/base.yaml", "recipes/paper/gsm8k.yaml", f"recipes/methods/{method}.yaml")
    folders = {role: str(qwen2 / size) for role, size in (("student", "0.5B"), ("teacher", "7B"))}
    recipe = yaml.safe_load((CONFIGS / files[-1]).read_text())["model"]
    if "reference" in recipe:
        folders["reference"] = folders["student"]
    if recipe.get("teacher", {}).get("class_path") == "MovingAverage":
        folders["teacher.source"] = folders["student"]
        del folders["teacher"]
    options = [f"--model.{role}.path={folder}" for role, folder in folders.items()]
    cli = build(*files, options=options)
    needs = cli.model.objective
    assert (cli.model.reference_source is not None) == needs.needs_reference
    models = parsed_parameters(cli.model)
    assert (models.teacher is not None) >= needs.needs_teacher
    assert models.student.model.config.attention_dropout == 0.0, "Veto's dropout is not that of other papers"
    assert cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches == 8
    lengths = [p.max_new_tokens for _, p in RunSetup(cli.model, cli.datamodule, {}).parts() if isinstance(p, Sampling)]
    assert all(length >= cli.model.evaluation.max_new_tokens for length in lengths)


@pytest.mark.parametrize("task", TASKS)
def test_the_teachers_recipe_builds(task, qwen2):
    files = ("recipes/paper/base.yaml", f"recipes/paper/{task}.yaml", "recipes/paper/teacher.yaml")
    cli = build(*files, options=["--model.student.path", str(qwen2 / "7B")])
    assert isinstance(cli.model.objective, SFT)
    assert isinstance(cli.trainer.strategy, FullyShard)
    models = parsed_parameters(cli.model)
    assert models.teacher is None
    assert {p.dtype for p in models.student.parameters()} == {torch.float32}
    assert cli.datamodule.batch_size * given("recipes/paper/teacher.yaml")["trainer"]["devices"] == 8


def test_the_humaneval_evaluation_builds_behind_the_base(qwen2):
    files = ("recipes/paper/base.yaml", "recipes/paper/humaneval.yaml")
    cli = build(*files, options=["--model.student.path", str(qwen2 / "0.5B")])
    assert cli.datamodule.task.stop == ()
    assert list(cli.model.validation_metrics) == ["pass@1", "pass@10", "eos_rate"]
    assert parsed_parameters(cli.model).teacher is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_build_behind_a_recipe(name):
    options = ["--trainer.num_nodes", "1"]
    strategy = build("debug/base.yaml", "debug/veto.yaml", f"strategy/{name}.yaml", options=options).trainer.strategy
    assert isinstance(strategy, FullyShard)
    assert strategy.gather == {"student": True, "teacher": False, "reference": False}
    given = yaml.safe_load((CONFIGS / "strategy" / f"{name}.yaml").read_text())["trainer"]
    assert given.get("num_nodes", 1) == STRATEGIES[name]


@pytest.mark.parametrize("name", QUICKSTART)
def test_quickstart_configs_build(name, tmp_path):
    """The exported folders do not exist before the quickstart has run; the configs must parse all the same."""
    cli = build("quickstart/base.yaml", f"quickstart/{name}.yaml")
    assert cli.trainer.max_steps > 0
    assert cli.datamodule.limits["train"] == (None if name == "teacher" else 1000)


@pytest.mark.parametrize("name", SMOLLM2)
def test_the_smollm2_recipes_parse(name):
    cli = build(f"recipes/smollm2_{name}.yaml")
    assert cli.model.student_source.source == cli.model.teacher_source
    assert cli.model.student_source.drop_layers == (24, 25, 26)


def test_the_smollm2_recipe_with_an_adapter_parses():
    cli = build("recipes/smollm2_gsm8k.yaml", "recipes/smollm2_lora.yaml")
    student = cli.model.student_source
    assert student.source.source == cli.model.teacher_source
    assert (student.rank, student.targets) == (16, "all-linear")


def test_the_road_to_a_served_student_parses_with_either_teacher():
    """Its teacher term asks a server in the second, and no model is loaded for it."""
    taught = build("recipes/smollm2_served.yaml")
    assert taught.model.student_source.source.source == taught.model.teacher_source
    assert [c.monitor for c in taught.trainer.callbacks if isinstance(c, EarlyStopping)] == ["validation/accuracy"]
    remote = build("recipes/smollm2_served.yaml", "recipes/smollm2_served_teacher.yaml")
    assert remote.model.teacher_source is None
    assert remote.model.student_source == taught.model.student_source
    first, second = (cli.model.objective.terms for cli in (taught, remote))
    assert first["answers"] == second["answers"]
    sampled = [first["teacher"].rollout.sampling, second["teacher"].rollout.source.sampling]
    assert [how.max_new_tokens for how in sampled] == [16, 16]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder and the log of a debug run that nothing stops, run when it is first asked for."""
    known = {}

    def run(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = folder, debug_run(name, folder)
        return known[name]

    return run


def one_by_one(*kept):
    """The debug runs, all but those that are kept slow; the tests of one share a worker, which runs it once."""
    return [
        pytest.param(
            name, marks=[pytest.mark.xdist_group(f"debug {name}"), *([] if name in kept else [pytest.mark.slow])]
        )
        for name in DEBUG
    ]


def test_every_debug_run_trains_on_something():
    assert not [name for name in DEBUG if not any(golden_losses(name))]


@pytest.mark.parametrize("name", one_by_one(*FILES))
def test_debug_runs_reproduce_their_golden_losses(name, straight, request):
    """A change of a loss must be meant: run this file with `--update-golden`, and say why it moved."""
    folder, log = straight(name)
    found = losses(log)
    if request.config.getoption("--update-golden"):
        (GOLDEN / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    # Sampled tokens may differ between machines in the last bit of a probability, and then a loss does; 1e-4 forgives
    # rounding and nothing else.
    assert found == pytest.approx(golden_losses(name), rel=1e-4)
    if name in ("sft", "seq_kd", "supervised_kd"):
        assert found[-1] < found[0], "the others change their target or their data as they go"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 6


EACH_STEP = ("--ckpt_path=last", "--trainer.val_check_interval=1", "--checkpoint.every_n_train_steps=1")


@pytest.mark.slow
@pytest.mark.xdist_group("debug distillm")
def test_memories_see_a_validation_that_was_cut_short(tmp_path):
    """It is made up for before the first rollout of the process that goes on."""
    replay = "--model.objective.init_args.rollout.init_args"
    options = (*EACH_STEP, f"{replay}.start=0.1", f"{replay}.increment=0.3")
    expected = debug_run("distillm", tmp_path / "straight", *options)
    assert len({row["train/phi"] for row in expected}) > 2
    with stopped_at(7, "validation_step"):  # two batches each: before the first step, after it, the second, the third
        debug_run("distillm", tmp_path / "stopped", *options)
    assert debug_run("distillm", tmp_path / "stopped", *options) == expected


@pytest.mark.parametrize("name", one_by_one("distillm", "lora", "veto"))
def test_debug_runs_that_were_stopped_go_on_exactly(name, straight, tmp_path):
    """To the bit: rollouts, memories, moving teachers and schedules included."""
    with stopped_at(4):
        debug_run(name, tmp_path, "--ckpt_path=last")
    assert debug_run(name, tmp_path, "--ckpt_path=last") == straight(name)[1]
