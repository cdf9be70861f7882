"""Signs, clocks and latents of real pipelines: our Euler steps give the latents of the pipelines' own loops."""

import pytest
import torch

from tests.diffusion.tiny_pipelines import image_rows, klein, vision, z_image
from veto_pl.diffusion import Denoiser, FewSteps, PipelineImages
from veto_pl.diffusion.pipelines import Flux2Klein, ZImage, padded
from veto_pl.diffusion.vision_reader import VisionReader
from veto_pl.exceptions import ConfigurationError, DataError

TEXTS = ["a cat", "a much longer text than the other"]


def noise(channels=4, side=8, seed=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(seed))


def grid_of(pipeline):
    """The times of the steps that a pipeline has just taken."""
    return tuple(float(t) for t in 1 - pipeline.scheduler.sigmas[:-1].double())


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_z_image_steps_as_its_pipeline_does(steps):
    pipeline, z = z_image(), noise()
    told = ZImage(pipeline).told(TEXTS)
    settings = {"guidance_scale": 0.0, "output_type": "latent", "height": 16, "width": 16}
    expected = pipeline(prompt=list(TEXTS), latents=z, num_inference_steps=steps, **settings).images
    grid = grid_of(pipeline)
    _, found = FewSteps(grid=(0.0, *grid[1:])).integrate(Denoiser(pipeline.transformer), z, told)
    assert (expected - z).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_papers_grid_is_that_of_four_steps_of_z_image():
    """Their scheduler shifts by 3."""
    pipeline = z_image()
    pipeline(prompt=["a"], num_inference_steps=4, guidance_scale=0.0, output_type="latent", height=16, width=16)
    assert grid_of(pipeline) == pytest.approx(FewSteps().grid, abs=1e-6)


@pytest.mark.parametrize("shown", [False, True])
def test_klein_steps_as_its_pipeline_does(shown):
    """With another image, the reference stands behind the states."""
    from PIL import Image

    pipeline, z = klein(), noise(16, 16)
    around = Flux2Klein(pipeline)
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    settings = {"output_type": "latent", "height": 64, "width": 64, "image": image if shown else None}
    expected = pipeline(prompt=list(TEXTS), latents=z, num_inference_steps=4, **settings).images
    grid = grid_of(pipeline)
    pixels = pipeline.image_processor.preprocess(image, height=64, width=64)
    with torch.no_grad():
        latents = around.latents(pixels).expand(2, -1, -1, -1)
        told = around.told_more(TEXTS, [], latents) if shown else around.told(TEXTS)
    _, found = FewSteps(grid=(0.0, *grid[1:])).integrate(Denoiser(pipeline.transformer), z, told)
    mean = pipeline.vae.bn.running_mean.view(1, -1, 1, 1)
    std = (pipeline.vae.bn.running_var + pipeline.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(pipeline._unpatchify_latents(found * std + mean), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "kind", "shape"), [(z_image, ZImage, (4, 8)), (klein, Flux2Klein, (16, 4))])
def test_latents_are_those_that_the_pipeline_decodes(make, kind, shape):
    pipeline, z = make(), noise(*shape)
    around = kind(pipeline)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 0.0}
    image = pipeline(prompt=list(TEXTS), latents=z, output_type="pt", **settings).images
    told = around.told(TEXTS)
    _, states = FewSteps(grid=(0.0, *grid_of(pipeline)[1:])).integrate(Denoiser(pipeline.transformer), z, told)
    with torch.no_grad():
        torch.testing.assert_close((around.pixels(states) / 2 + 0.5).clamp(0, 1), image, rtol=1e-4, atol=1e-4)
        latents = around.latents(image * 2 - 1)
    assert latents.shape == z.shape


def test_a_row_does_not_depend_on_the_length_of_its_neighbours():
    pipeline, z = z_image(), noise()
    model, t = Denoiser(pipeline.transformer), torch.tensor([0.0, 0.25])
    around = ZImage(pipeline)
    with torch.no_grad():
        both = model.velocity(z, t, around.told(TEXTS))
        alone = model.velocity(z[:1], t[:1], around.told(TEXTS[:1]))
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_reader_of_images_speaks_as_the_pipelines_encoder(tmp_path):
    """Of a text without an image it would make what the pipeline makes; the image changes what it makes."""
    from PIL import Image

    pipeline = z_image()
    reader = VisionReader(str(vision(tmp_path)), torch.float32)
    red, blue = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 24), (0, 0, 200))
    one, other = reader.read(["a cat"] * 2, [red, blue], pipeline.text_encoder)
    assert len(one) == len("user\na cat" + "\n" + "assistant\n") + 3 + 2 + 4, "marks of turns, and of the image"
    assert len(other) - len(one) == 2, "two more pairs of patches"
    assert (one[-1] - other[-1]).abs().max() > 1e-4
    own = reader.model.model.language_model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in pipeline.text_encoder.state_dict().items())
    ids = pipeline.tokenizer("a cat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        found = reader.model.model(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_encoded_for_student_and_teacher(tmp_path):
    z_image().save_pretrained(tmp_path / "z")
    rows = image_rows(tmp_path)
    images = PipelineImages(
        str(tmp_path / "z"), str(rows), size=16, vision=str(vision(tmp_path / "vl")), dtype="float32"
    )
    batch = images.load("train")
    assert images.load("validation") is None
    assert batch.targets.shape == (3, 4, 8, 8)
    expected = ZImage(z_image()).told(["new style", "very new style", "very very new style"])
    torch.testing.assert_close(batch.conditions, {name: value.detach() for name, value in expected.items()})
    extra = batch.stronger["prompt_mask"].sum(1) - batch.conditions["prompt_mask"].sum(1)
    assert extra.tolist() == [6, 6, 6], "an image of 16 by 16 pixels is four tokens and two marks"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 18}, ConfigurationError, "`PipelineImages.size` must be a multiple of 4"),
        ({"pipeline": "/no/such"}, ConfigurationError, "`pipeline`: given `/no/such`, expected a pipeline"),
        ({"train": "none.jsonl"}, DataError, "none.jsonl` is no file of rows"),
        ({"dtype": "seven"}, ConfigurationError, "`dtype` must name a dtype"),
        ({"vision": "/no/such"}, ConfigurationError, "`vision`: given `/no/such`, expected a model that reads images"),
    ],
)
def test_what_cannot_be_encoded_is_named(changes, error, message, tmp_path):
    z_image().save_pretrained(tmp_path / "z")
    given = {"pipeline": str(tmp_path / "z"), "train": str(image_rows(tmp_path)), "size": 16, "dtype": "float32"}
    with pytest.raises(error, match=message):
        PipelineImages(**given | changes).load("train")


@pytest.mark.parametrize("line", ["[]", '{"image": "0.png"}', '{"text": "a", "image": "9.png"}', "{"])
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    rows = image_rows(tmp_path)
    rows.write_text(f"{rows.read_text()}{line}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: expected a JSON object"):
        PipelineImages("unused", str(rows), size=16).load("train")


def test_conditions_of_another_model_are_named():
    told = padded([torch.zeros(3, 16)])
    with pytest.raises(ConfigurationError, match=r"are prompt_embeds, prompt_mask, got prompt_embeds\."):
        Denoiser(z_image().transformer).velocity(noise()[:1], torch.zeros(1), {"prompt_embeds": told["prompt_embeds"]})
    with pytest.raises(ConfigurationError, match="and perhaps image_latents, got prompt_embeds, prompt_mask"):
        Denoiser(klein().transformer).velocity(noise(16, 4)[:1], torch.zeros(1), told)
