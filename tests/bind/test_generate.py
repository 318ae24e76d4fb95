"""Pictures from vectors, by a tiny unCLIP pipeline with random weights."""

import numpy as np
import pytest
import torch

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.generate import Generator
from vitrail.bind.modalities.text import Text
from vitrail.bind.search.searcher import combine
from vitrail.cli.main import main
from vitrail.errors import VitrailError

DIMENSION = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every part of Stable unCLIP, as small as can be; its normalizer as if CLIP's embeddings were about 6 long."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pipeline")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = transformers.CLIPVisionConfig(**sizes, projection_dim=DIMENSION, image_size=32, patch_size=16)
    said = transformers.CLIPTextConfig(
        **sizes,
        projection_dim=DIMENSION,
        vocab_size=len(words),
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    torch.manual_seed(0)
    normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(DIMENSION)
    normalizer.mean.data.fill_(2.0)
    normalizer.std.data.fill_(0.5**0.5)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(crop_size=32, size=32),
        image_encoder=transformers.CLIPVisionModelWithProjection(seen),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        text_encoder=transformers.CLIPTextModel(said),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=16,
            layers_per_block=1,
            norm_num_groups=4,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * DIMENSION,
        ),
        scheduler=diffusers.DDIMScheduler(),
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator(folder):
    return Generator(folder)


def unit(seed):
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_the_vector_stands_in_for_clips_embedding(generator):
    assert generator.dimension == DIMENSION
    picture = generator.generate(unit(0), seed=3, steps=2, guidance=2.0)
    embedding = 6 * torch.from_numpy(unit(0))[None]  # 8 (2^2 + 1/2) = 36
    (expected,) = generator.pipeline(
        prompt="",
        image_embeds=embedding,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3),
    ).images
    assert picture.size == (8, 8)
    np.testing.assert_array_equal(np.array(picture), np.array(expected))


def test_seed_vector_steps_and_guidance_make_a_difference(generator):
    given = {"seed": 3, "steps": 2, "guidance": 2.0}
    first = np.array(generator.generate(unit(0), **given))
    assert (np.array(generator.generate(unit(0), **given)) == first).all()
    assert (np.array(generator.generate(unit(1), **given)) != first).any()
    for name, other in {"seed": 4, "steps": 3, "guidance": 9.0}.items():
        assert (np.array(generator.generate(unit(0), **given | {name: other})) != first).any()


def test_what_is_wrong_is_said_in_a_sentence(generator, folder, tmp_path):
    with pytest.raises(VitrailError, match="paints from vectors of 8 dimensions, and the model's have 3"):
        generator.generate(unit(0)[:3])
    with pytest.raises(VitrailError, match=r"There is no pipeline in .*nowhere; name the folder of a StableUnCLIP"):
        Generator(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(VitrailError, match=r"is a FluxPipeline; name the folder of a StableUnCLIPImg2ImgPipeline\.$"):
        Generator(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(VitrailError, match=r"model_index.json is damaged; get the pipeline anew\.$"):
        Generator(tmp_path)
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(VitrailError, match=r"cannot be read \(.*\); get it anew\.$"):
        Generator(tmp_path)


def test_the_extra_may_be_missing(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(VitrailError, match=r"one is missing; pip install 'vitrail\[generate\]'\.$"):
        Generator(folder)


def test_command(generator, folder, tmp_path, capsys):
    torch.manual_seed(0)
    model = tmp_path / "tiny.safetensors"
    ImageBindConfig(DIMENSION, {"text": Text(width=16, depth=1, heads=2)}).build().save(model)
    output = tmp_path / "out.png"
    command = ["bind", "generate", "--pipeline", str(folder), "-o", str(output), "--model", str(model)]
    command += ["--steps", "2", "--guidance", "2", "--seed", "3", "--device", "cpu"]
    assert main([*command, "--text", "rain", "--text", "a roof", "--weights", "1", "-0.5"]) == 0
    assert capsys.readouterr().out == f"{output}: 8 x 8 pixels\n"
    vectors = ImageBind.load(model).embed({"text": ["rain", "a roof"]})["text"].numpy()
    expected = generator.generate(combine(vectors, [1, -0.5]), seed=3, steps=2, guidance=2.0)
    from PIL import Image

    np.testing.assert_array_equal(np.array(Image.open(output)), np.array(expected))
    assert main(command) == 1
    assert "There is nothing to start from; give --image" in capsys.readouterr().err
    command[command.index(str(output))] = str(tmp_path / "out.txt")
    assert main([*command, "--text", "rain"]) == 1
    assert "its name must end in .png, .jpg or .webp" in capsys.readouterr().err
