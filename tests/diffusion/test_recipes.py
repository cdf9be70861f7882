"""Recipes of real few-step models: their shapes on the meta device, and whole runs of tiny ones of their classes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, Flux2Transformer2DModel, ZImageTransformer2DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.diffusion.tiny_pipelines import image_rows, klein, vision, z_image
from veto_pl.cli.denoising_cli import DenoisingCLI
from veto_pl.commands.main import main
from veto_pl.diffusion import DenoisingModule, FewSteps
from veto_pl.diffusion.pipelines import load_surroundings
from veto_pl.exceptions import ConfigurationError

RECIPES = Path(__file__).resolve().parents[2] / "configs/recipes"
KLEIN_4B = {
    "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
FULL = {
    "z_image_turbo": (ZImageTransformer2DModel, {}, 6.15e9),
    "flux2_klein": (Flux2Transformer2DModel, KLEIN_4B, 3.88e9),
}
TINY = {"z_image_turbo": z_image, "flux2_klein": klein}


def changed(name, folder, changes=()):
    """The file of a recipe with the folder in the place of the hub's names."""
    found = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())

    def placed(value):
        if isinstance(value, dict):
            return {key: placed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [placed(one) for one in value]
        known = {"rows.jsonl": "rows.jsonl", "Qwen/Qwen3-VL-4B-Instruct": "vl"}
        is_hub = isinstance(value, str) and (value in known or value.startswith(("Tongyi", "black-forest")))
        return str(folder / known.get(value, "pipeline")) if is_hub else value

    found = placed(found)
    for place, value in dict(changes).items():
        within = found
        *path, last = place.split(".")
        for key in path:
            within = within[key]
        within[last] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.mark.parametrize("name", FULL)
def test_the_shapes_of_the_real_model_are_made_on_the_meta_device(name, tmp_path):
    kind, settings, expected = FULL[name]
    with torch.device("meta"):
        kind(**settings).save_config(tmp_path / "pipeline/transformer")
    cli = DenoisingCLI(["--config", str(changed(name, tmp_path)), "--trainer.accelerator=cpu"], run=False)
    with torch.device("meta"):
        cli.model.configure_model()
    student, teacher = cli.model.models.student, cli.model.models.teacher
    weights = {n: p for n, p in student.named_parameters() if not p.requires_grad}
    adapter = {n: p for n, p in student.named_parameters() if p.requires_grad}
    assert all(p.is_meta for p in (*student.parameters(), *teacher.parameters()))
    assert sum(p.numel() for p in weights.values()) == pytest.approx(expected, rel=0.02)
    assert {p.dtype for p in weights.values()} == {torch.bfloat16}
    assert {p.dtype for p in adapter.values()} == {torch.float32}, "an average of small steps needs float32"
    assert {min(p.shape) for p in adapter.values()} == {64}
    assert student.model.gradient_checkpointing
    assert cli.model.teacher_source.decay == 0.9999


@pytest.fixture(scope="module", params=list(TINY))
def trained(request, tmp_path_factory):
    """A run of three steps, stopped and gone on with, and the pipeline that it started from."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = TINY[request.param]()
    pipeline.save_pretrained(folder / "pipeline")
    image_rows(folder)
    vision(folder / "vl")
    lora = "model.student.init_args"
    changes = {
        f"{lora}.rank": 2, f"{lora}.alpha": 4, f"{lora}.source.init_args.dtype": "float32",
        "data.images.init_args.size": 16, "data.images.init_args.dtype": "float32",
        "data.images.init_args.validation": str(folder / "rows.jsonl"), "model.optimizer.init_args.lr": 0.05,
        "trainer.max_steps": 2, "trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 2,
    }  # fmt: skip
    found = yaml.safe_load(changed(request.param, folder, changes).read_text())
    found["model"]["teacher"]["init_args"] = {"decay": 0.9, "source": found["model"]["student"]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(found))
    given = [
        "fit",
        "--config",
        str(folder / "tiny.yaml"),
        "--run_dir",
        str(folder / "run"),
        "--trainer.accelerator=cpu",
    ]
    DenoisingCLI([*given, "--trainer.max_steps=1"])
    DenoisingCLI([*given, "--trainer.max_steps=2", "--ckpt_path=last"])
    return request.param, folder, pipeline


def module_of(folder):
    return DenoisingModule.load_from_checkpoint(folder / "run/checkpoints/last.ckpt")


def sampled_by(pipeline, noise):
    settings = {"height": 16, "width": 16, "guidance_scale": 0.0, "output_type": "latent", "num_inference_steps": 4}
    return pipeline(prompt=["a new style", "another"], latents=noise, **settings).images


def noise_of(name):
    shape = {"z_image_turbo": (2, 4, 8, 8), "flux2_klein": (2, 16, 4, 4)}[name]
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_export_is_a_pipeline_that_samples_what_the_run_samples(trained):
    name, folder, _ = trained
    exported = DiffusionPipeline.from_pretrained(folder / "run/export")
    module, noise = module_of(folder), noise_of(name)
    found = sampled_by(exported, noise)
    grid = tuple((1 - exported.scheduler.sigmas[:-1].double()).tolist())
    conditions = load_surroundings(str(folder / "pipeline")).told(["a new style", "another"])
    _, states = FewSteps(grid=(0.0, *grid[1:])).integrate(module.student.eval(), noise, conditions)
    if name == "flux2_klein":  # whose latents are told as the decoder reads them
        vae = exported.vae
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
        states = exported._unpatchify_latents(states * std + vae.bn.running_mean.view(1, -1, 1, 1))
    torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-4)


def test_the_adapter_alone_makes_the_student_of_the_base(trained):
    name, folder, _ = trained
    base = DiffusionPipeline.from_pretrained(folder / "pipeline")
    noise = noise_of(name)
    before = sampled_by(base, noise)
    base.load_lora_weights(folder / "run/export/lora")
    after, merged = sampled_by(base, noise), sampled_by(DiffusionPipeline.from_pretrained(folder / "run/export"), noise)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, merged, rtol=1e-4, atol=1e-4)


def test_checkpoints_hold_adapters_and_no_base(trained):
    _, folder, _ = trained
    saved = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    names = set(saved["state_dict"])
    assert {name.partition(".")[0] for name in names} == {"student", "teacher"}
    assert all("lora_" in name for name in names)
    with safe_open(folder / "run/export/lora/pytorch_lora_weights.safetensors", "pt") as file:
        assert len(list(file.keys())) == sum(name.startswith("student.") for name in names)
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"] == 4


def test_a_checkpoint_is_exported_as_the_run_has_exported_it(trained, tmp_path, capsys):
    _, folder, _ = trained
    checkpoint = str(folder / "run/checkpoints/last.ckpt")
    main(["diffusion", "export", checkpoint, str(tmp_path / "a"), "--pipeline", str(folder / "pipeline")])
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "a"))
    for path in sorted((folder / "run/export").rglob("*.safetensors")):
        # The library writes what is said beside the weights in any order, so the bytes of two files may differ.
        found, expected = load_file(tmp_path / "a" / path.relative_to(folder / "run/export")), load_file(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), path.name
    with pytest.raises(
        SystemExit, match="is exported by another command: `veto-pl diffusion export CHECKPOINT FOLDER`"
    ):
        main(["export", checkpoint, str(tmp_path / "b")])


def test_a_base_that_is_another_is_refused(trained):
    _, folder, _ = trained
    module = module_of(folder)
    saved = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    first = next(iter(saved["veto_pl_adapter"]["base"]))
    saved["veto_pl_adapter"]["base"][first] += 1
    with pytest.raises(ConfigurationError, match="trained beside other weights: 1 of"):
        module.check_student(saved)


def test_pictures_are_decoded(trained):
    _, folder, _ = trained
    for path in sorted((folder / "run/samples").glob("*.png")):
        picture = Image.open(path)
        assert picture.size == (3 * 17, 17)
    colours = {picture.getpixel((x, 8))[:3] for x in range(3)}
    assert any(len(set(colour)) > 1 for colour in colours), "decoded images have colours"
