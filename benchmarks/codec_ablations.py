"""The comparisons of Section 5.4.3, and Figure 5.3, in miniature; and what one nested model costs.

    python benchmarks/codec_ablations.py --parts figure_5.3 figure_5.8 nested --data photos --pictures kodak
    python benchmarks/codec_ablations.py --parts table_5.2 figure_5.9 figure_5.10 --codec runs/codec --pictures kodak

figure_5.3   product quantization against plain vector quantization at the same fixed-length rates
figure_5.8   autoencoders of several sizes, nested, so that each training gives a whole curve
nested       one nested model against models trained for one quality each, all with the same number of steps
table_5.2    marginal, raster and quincunx: rates and multiply-adds of the masked image model
figure_5.9   partitions and numbers of steps: real files
figure_5.10  missing tokens, filled in by the masked image model

The first three train (finished runs are not run again), the others take a trained codec. Each writes a CSV file and a
table in Markdown, and prints it. Everything is measured on the centres of the pictures, --size pixels a side.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from vitrail.compress import Codec, Scheme
from vitrail.compress.autoencoder import AUTOENCODERS, AutoencoderConfig
from vitrail.compress.evaluation.compressai import CompressAIModel
from vitrail.compress.prior import PriorConfig
from vitrail.compress.training.autoencoder import AutoencoderTraining
from vitrail.compress.training.crops import Crops
from vitrail.data.datasets import ImageData
from vitrail.data.images import list_images, read_image
from vitrail.data.loader import LoaderConfig
from vitrail.engine.checkpoint import open_task
from vitrail.engine.evaluate import evaluate_checkpoint
from vitrail.engine.experiment import Loop
from vitrail.engine.loop import fit
from vitrail.engine.optim import OptimizerConfig
from vitrail.files import write_text
from vitrail.metrics.rate_distortion import bits_per_pixel
from vitrail.metrics.reconstruction import psnr, to_8_bits
from vitrail.tables import markdown_table, write_rows

Row = Sequence[object]
Table = tuple[list[str], list[Row]]

TRAINED = ["model", "sub-vectors", "bpp fixed-length", "bpp marginal", "bpp quincunx", "PSNR (dB)", "MS-SSIM (dB)"]
TRAINED += ["usage", "perplexity", "parameters"]
MARGINAL, RASTER = Scheme("marginal", 1), Scheme("raster", 1)
STEPS = (1, 2, 3, 4, 5, 6, 8)
MISSING = (0.0, 0.1, 0.2, 0.3, 0.5)
KODAK_SIZE = (768, 512)


def train(name: str, config: AutoencoderConfig, arguments: argparse.Namespace) -> list[Row]:
    """A row of the table of trained models for each quality that a model has."""
    data = ImageData(arguments.data, labelled=False)
    crops = Crops(size=arguments.crop, resized=False)
    epochs = arguments.steps * arguments.batch_size / len(data.open(crops.build()))
    optimizer = OptimizerConfig(
        lr=arguments.lr,
        lr_batch_size=None,
        weight_decay=0.02,
        betas=(0.9, 0.95),
        warmup_epochs=0.05 * epochs,
        min_lr=arguments.lr / 20,
    )
    experiment = AutoencoderTraining(
        data=data,
        crops=crops,
        autoencoder=config,
        prior=PriorConfig(config.width, config.depth, config.heads),
        quantizer_weight=arguments.quantizer_weight,
        optimizer=optimizer,
        loop=Loop(
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            accelerator=arguments.accelerator,
        ),
        loader=LoaderConfig(workers=arguments.workers),
    )
    folder = arguments.output / "runs" / name.replace(" ", "_")
    fit(experiment, folder, resume=True)
    pictures = ImageData(arguments.pictures, labelled=False).open(Crops(size=arguments.size).centre())
    figures = evaluate_checkpoint(folder, pictures, batch_size=4, accelerator=arguments.accelerator)
    parameters = sum(value.numel() for value in open_task(folder)[1].autoencoder.parameters())
    rows: list[Row] = []
    for quality in range(1, config.parts + 1) if config.nested else (config.parts,):
        prefix = "" if quality == config.parts else f"quality_{quality}/"
        keys = ("bpp_fixed", "bpp_marginal", "bpp_quincunx", "psnr", "ms_ssim_db")
        measured = [figures[prefix + key] for key in keys]
        rows.append([name, quality, *measured, figures["usage"], figures["perplexity"], parameters])
        print(rows[-1], flush=True)
    return rows


def base(arguments: argparse.Namespace) -> AutoencoderConfig:
    """What the trained models have in common."""
    size = (arguments.width, arguments.depth, arguments.heads)
    return AutoencoderConfig(*size, arguments.factor, shortcut=True, usage_decay=0.95)


def product_against_vector(arguments: argparse.Namespace) -> Table:
    """Figure 5.3: M sub-vectors of V centroids against one vector of V^M, for M bits of log2 V."""
    config = replace(base(arguments), centroids=arguments.centroids)
    rows = train("PQ and VQ, 1", replace(config, parts=1), arguments)
    for parts in range(2, arguments.most_parts + 1):
        rows += train(f"PQ, {parts}", replace(config, parts=parts), arguments)
        # The same dimensions in all, so that only the quantizer differs.
        vector = replace(config, parts=1, part_width=parts * config.part_width, centroids=config.centroids**parts)
        rows += train(f"VQ, {parts}", vector, arguments)
    return TRAINED, rows


def sizes(arguments: argparse.Namespace) -> Table:
    """Figure 5.8; a size is one of the thesis's, or WIDTHxDEPTH."""
    rows: list[Row] = []
    for size in arguments.sizes:
        if size in AUTOENCODERS:
            config = replace(AUTOENCODERS[size], factor=arguments.factor, shortcut=True, usage_decay=0.95)
        else:
            width, depth = map(int, size.split("x"))
            config = replace(base(arguments), width=width, depth=depth)
        rows += train(f"size {size}", replace(config, parts=4, nested=True), arguments)
    return TRAINED, rows


def nested(arguments: argparse.Namespace) -> Table:
    """One nested model of M = 4 against M = 1, 2, 4 alone."""
    rows = train("nested", replace(base(arguments), parts=4, nested=True), arguments)
    for parts in (1, 2, 4):
        rows += train(f"separate {parts}", replace(base(arguments), parts=parts), arguments)
    return TRAINED, rows


def policies(arguments: argparse.Namespace) -> Table:
    """Table 5.2: estimated rates of the model, rates of whole files, and multiply-adds a pixel of the prior alone.

    In raster order the masked image model takes the place of the thesis's causal ViT: its rate is what it predicts
    token by token. The multiply-adds of a ViT of its width and depth, run once a token, are computed. They are for
    768 x 512 pixels, and do not count the autoencoder, for which there is a row.
    """
    codec, quality = arguments.codec, arguments.quality
    grid = (KODAK_SIZE[1] // codec.autoencoder.factor, KODAK_SIZE[0] // codec.autoencoder.factor)
    tokens, pixels = grid[0] * grid[1], KODAK_SIZE[0] * KODAK_SIZE[1]
    given = torch.zeros(1, *grid, quality, dtype=torch.int64), torch.zeros(1, *grid, dtype=torch.bool)
    once = multiply_adds(lambda: codec.prior(*given)) / pixels
    rows: list[Row] = []
    for name, scheme, passes in (("marginal", MARGINAL, 0), ("raster", RASTER, tokens), ("quincunx", Scheme(), 4)):
        model = CompressAIModel(codec, quality, scheme)
        estimated = files = 0.0
        for picture in arguments.crops:
            likelihoods = model(as_images(picture))["likelihoods"]["indices"]
            estimated -= float(likelihoods.log2().sum()) / (picture.width * picture.height)
            files += file_rate(codec, picture, quality, scheme)
        count = len(arguments.crops)
        rows.append([name, passes + (passes != tokens), estimated / count, files / count, passes * once / 1e6])
    config = codec.prior.config
    layers = config.depth * (12 * tokens * config.width**2 + 2 * tokens**2 * config.width)
    heads = tokens * config.width * codec.prior.parts * codec.prior.centroids
    rows.append(["raster with a ViT (computed)", tokens, None, None, tokens * (layers + heads) / pixels / 1e6])
    images = torch.zeros(1, 3, *KODAK_SIZE[::-1])
    autoencoder = codec.autoencoder
    both = multiply_adds(lambda: autoencoder.decode(autoencoder.encode(images)[..., :quality]))
    rows.append(["(encoder and decoder)", None, None, None, both / pixels / 1e6])
    return ["policy", "steps", "bpp estimated", "bpp of files", "multiply-adds a pixel (M)"], rows


def multiply_adds(run: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def partitions(arguments: argparse.Namespace) -> Table:
    """Figure 5.9: mean bits per pixel of whole files."""
    rows: list[Row] = []
    for steps in STEPS:
        for kind in ("quincunx", "confidence_linear", "confidence_doubling"):
            rates = [file_rate(arguments.codec, one, arguments.quality, Scheme(kind, steps)) for one in arguments.crops]
            rows.append([kind, steps, sum(rates) / len(rates)])
    return ["partition", "steps", "bpp of files"], rows


def missing(arguments: argparse.Namespace) -> Table:
    """Figure 5.10: tokens missing at random; filled in by the model, or by each codebook's most frequent index."""
    codec: Codec = arguments.codec
    frequent = torch.from_numpy(codec.marginals[: arguments.quality].argmax(axis=1))
    rows: list[Row] = []
    for share in MISSING:
        totals = torch.zeros(4, dtype=torch.float64)
        for number, picture in enumerate(arguments.crops):
            images = as_images(picture)
            indices = codec.autoencoder.encode(images)[..., : arguments.quality].contiguous()
            known = draw_known((indices.shape[1], indices.shape[2]), share, seed=number)[None]
            hidden = torch.where(known[..., None], indices, 0)
            filled = torch.where(known[..., None], indices, codec.prior(hidden, known).argmax(dim=-1))
            plain = torch.where(known[..., None], indices, frequent)
            right = [(guess == indices)[~known].double().mean().nan_to_num(1.0) for guess in (filled, plain)]
            distances = [psnr(images, codec.autoencoder.decode(guess))[0] for guess in (filled, plain)]
            totals += torch.stack([right[0], distances[0], right[1], distances[1]])
        rows.append([100 * share, *(totals / len(arguments.crops)).tolist()])
    header = [
        "missing (%)",
        "right indices",
        "PSNR (dB)",
        "right, most frequent index",
        "PSNR (dB), most frequent index",
    ]
    return header, rows


def draw_known(grid: tuple[int, int], share: float, seed: int) -> Tensor:
    """[h, w] bool, all but `share` of the tokens."""
    tokens = grid[0] * grid[1]
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return (order >= round(share * tokens)).view(grid)


def as_images(picture: Image.Image) -> Tensor:
    """[1, 3, H, W] in 0..1."""
    return pil_to_tensor(picture)[None] / 255


def file_rate(codec: Codec, picture: Image.Image, quality: int, scheme: Scheme) -> float:
    return bits_per_pixel(len(codec.compress(picture, quality, scheme)), picture.width, picture.height)


def read_crops(folder: Path, size: int, most: int | None) -> Iterator[Image.Image]:
    """The centres of pictures; those with a smaller side are enlarged."""
    centre = Crops(size=size).centre()
    for path in list_images(folder, recursive=True)[:most]:
        yield to_pil_image(to_8_bits(centre(read_image(path))).byte())


def cell(value: object) -> str:
    match value:
        case None:
            return "—"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


TRAINING = {"figure_5.3": product_against_vector, "figure_5.8": sizes, "nested": nested}
TAKING = {"table_5.2": policies, "figure_5.9": partitions, "figure_5.10": missing}
PARTS = TRAINING | TAKING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pictures", type=Path, required=True, help="the folder to measure on")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the centres of the pictures")
    parser.add_argument("--most", type=int, help="take the first so many pictures (of table_5.2, 5.9 and 5.10)")
    parser.add_argument("--output", type=Path, default=Path("ablations"))
    training = parser.add_argument_group("parts that train")
    training.add_argument("--data", type=Path, help="the folder to train on")
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--batch-size", type=int, default=16)
    training.add_argument("--crop", type=int, default=128, help="pixels a side")
    training.add_argument("--lr", type=float, default=1e-3)
    training.add_argument("--quantizer-weight", type=float, default=0.005, help="of its loss; the thesis has 0.5")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--width", type=int, default=128)
    training.add_argument("--depth", type=int, default=2, help="of encoder, decoder and prior each")
    training.add_argument("--heads", type=int, default=4)
    training.add_argument("--factor", type=int, choices=(8, 16), default=16)
    training.add_argument("--centroids", type=int, default=16, help="V of figure_5.3; VQ has V^M")
    training.add_argument("--most-parts", type=int, default=3, help="the greatest M of figure_5.3")
    training.add_argument(
        "--sizes", nargs="+", default=["64x2", "128x2", "192x4"], help="t6, s6, m6, l6 or WIDTHxDEPTH"
    )
    training.add_argument("--workers", type=int, default=0)
    training.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto")
    taking = parser.add_argument_group("parts that take a trained codec")
    taking.add_argument("--codec", help="a run, a checkpoint, a codec's file or its name")
    taking.add_argument("--quality", type=int, help="sub-vectors (default: all)")
    arguments = parser.parse_args()
    if arguments.data is None and not TRAINING.keys().isdisjoint(arguments.parts):
        parser.error("parts that train need --data")
    if not TAKING.keys().isdisjoint(arguments.parts):
        if arguments.codec is None:
            parser.error("table_5.2, figure_5.9 and figure_5.10 need --codec")
        arguments.codec = Codec.load(arguments.codec)
        arguments.quality = arguments.quality or arguments.codec.autoencoder.parts
        arguments.crops = list(read_crops(arguments.pictures, arguments.size, arguments.most))
    for part in arguments.parts:
        with torch.inference_mode(part in TAKING):
            header, rows = PARTS[part](arguments)
        write_rows(arguments.output / f"{part}.csv", header, rows)
        text = markdown_table(header, [[cell(value) for value in row] for row in rows])
        write_text(arguments.output / f"{part}.md", text)
        print(f"{part}\n\n{text}", flush=True)


if __name__ == "__main__":
    main()
