"""Steps of SplitMask, BEiT and DINO: images a second, memory, what is spent on data and on words; and their peers.

    python benchmarks/pretrain_speed.py --model vit_small_patch16_224 --batch 64 --data photos --output speed

`splitmask_inpaint` and `splitmask_match` have one of SplitMask's two losses (Table 4.8). `beit_dall_e` takes its words
from DALL-E's encoder, with random weights, as the thesis's BEiT does (Section 4.5.6). The peers are BEiT, MAE and DINO
written here around timm's ViT of the same size, as their papers describe them, on the same batches. A step is forward,
backward, AdamW and DINO's teacher. Each method runs in a process of its own; memory is the peak of that process, or on
a GPU what PyTorch has allocated. Waiting is the share of a training's time in which its step has no batch to go on
with, data being loaded in this many workers.
"""

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig, training_batches
from vitrail.pretrain.dall_e import DallEEncoder
from vitrail.pretrain.dino import Crops
from vitrail.pretrain.pretraining import MaskedTask, Pretraining
from vitrail.pretrain.tokenizers import TokenizerConfig
from vitrail.recipes import load_recipe
from vitrail.tables import write_table
from vitrail.weights.tokenizer import export_tokenizer

SWITCHES: dict[str, dict[str, Any]] = {"splitmask_inpaint": {"match": False}, "splitmask_match": {"inpaint": False}}
METHODS = ["beit", "beit_dall_e", "splitmask", *SWITCHES, "dino", "timm_beit", "timm_mae", "timm_dino"]
HEADER = ["method", "images/s", "ms a step", "times BEiT's", "memory (MB)", "tokenizer (%)", "waiting (%)"]


class TimmBEiT(nn.Module):
    """BEiT around timm's ViT: mask tokens, words by the cosine with random directions."""

    def __init__(self, model: str, size: int, words: int) -> None:
        super().__init__()
        self.vit = timm.create_model(model, num_classes=0, img_size=size)
        self.token = nn.Parameter(torch.zeros(1, 1, self.vit.embed_dim))
        self.head = nn.Linear(self.vit.embed_dim, words)
        self.side = self.vit.patch_embed.patch_size[0]
        self.register_buffer("words", F.normalize(torch.rand(words, 192) * 2 - 1, dim=1))

    def forward(self, batch: Any) -> Tensor:
        mask = batch.mask.flatten(1)
        tokens = self.vit.patch_embed(batch.image)
        tokens = self.vit._pos_embed(torch.where(mask[:, :, None], self.token.to(tokens.dtype), tokens))
        tokens = self.vit.norm(self.vit.blocks(tokens))[:, self.vit.num_prefix_tokens :]
        small = F.interpolate(batch.image, scale_factor=8 / self.side, mode="area")
        with torch.no_grad():
            truth = (F.unfold(small, 8, stride=8).mT[mask] @ self.words.mT).argmax(dim=1)
        return F.cross_entropy(self.head(tokens[mask]).float(), truth)


class TimmMAE(nn.Module):
    """MAE around timm's ViT: a quarter of the patches is encoded, eight blocks of 512 channels paint the rest."""

    def __init__(self, model: str, size: int) -> None:
        super().__init__()
        self.vit = timm.create_model(model, num_classes=0, img_size=size)
        self.side = self.vit.patch_embed.patch_size[0]
        self.enter = nn.Linear(self.vit.embed_dim, 512)
        self.token = nn.Parameter(torch.zeros(512))
        self.positions = nn.Parameter(torch.randn(1, self.vit.patch_embed.num_patches, 512) * 0.02)
        self.decoder = nn.Sequential(*(timm.models.vision_transformer.Block(512, 16, qkv_bias=True) for _ in range(8)))
        self.head = nn.Linear(512, 3 * self.side**2)

    def forward(self, batch: Any) -> Tensor:
        tokens = self.vit.patch_embed(batch.image)
        tokens = tokens + self.vit.pos_embed[:, self.vit.num_prefix_tokens :]
        number, patches, _ = tokens.shape
        order = torch.rand(number, patches, device=tokens.device).argsort(dim=1)
        seen = order[:, : patches // 4, None]
        tokens = self.enter(self.vit.norm(self.vit.blocks(tokens.gather(1, seen.expand(-1, -1, tokens.shape[2])))))
        painted = self.token.to(tokens.dtype).expand(number, patches, -1).scatter(1, seen.expand(-1, -1, 512), tokens)
        painted = self.head(self.decoder(painted + self.positions))
        truth = F.unfold(batch.image, self.side, stride=self.side).mT
        hidden = torch.ones(number, patches, device=tokens.device).scatter(1, seen[:, :, 0], 0)
        return ((painted - truth).square().mean(dim=2) * hidden).sum() / hidden.sum()


class TimmDINO(nn.Module):
    """DINO around timm's ViT: a student of all crops, its slow average of the large ones."""

    def __init__(self, model: str, size: int, outputs: int) -> None:
        super().__init__()
        vit = timm.create_model(model, num_classes=0, img_size=size, dynamic_img_size=True)
        layers = [nn.Linear(vit.embed_dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)]
        self.student = nn.ModuleList([nn.Sequential(vit, *layers), nn.Linear(256, outputs, bias=False)])
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(outputs))

    @staticmethod
    def say(network: nn.ModuleList, crops: Tensor) -> Tensor:
        """[B, n, 3, S, S] -> [n, B, K]."""
        projected = F.normalize(network[0](crops.transpose(0, 1).flatten(0, 1)), dim=1)
        return (projected @ F.normalize(network[1].weight, dim=1).mT).float().unflatten(0, (crops.shape[1], -1))

    def forward(self, batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = self.say(self.teacher, batch.large)
            self.center.lerp_(wanted.mean(dim=(0, 1)), 0.1)
        targets = ((wanted - self.center) / 0.04).softmax(dim=2)
        said = torch.cat([self.say(self.student, crops) for crops in (batch.large, batch.small)])
        said = (said / 0.1).log_softmax(dim=2)
        pairs = [(i, j) for i in range(len(targets)) for j in range(len(said)) if i != j]
        return -sum((targets[i] * said[j]).sum(dim=1).mean() for i, j in pairs) / len(pairs)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(its, 0.004)


def dall_e(arguments: argparse.Namespace) -> TokenizerConfig:
    """Words of 8 x 8 pixels, one for each of the network's patches."""
    size = 8 * arguments.size // load_recipe("beit_imagenet", arguments.model).backbone.patch_size
    path = arguments.output / f"dall_e_{arguments.words}_{size}.pt2"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_tokenizer(DallEEncoder(words=arguments.words), path, size)
    return TokenizerConfig(kind="program", program=path)


def experiment_of(method: str, arguments: argparse.Namespace) -> Pretraining:
    recipe: Any = load_recipe(f"{method.partition('_')[0]}_imagenet", arguments.model)
    fields: dict[str, Any] = {"data": ImageData(arguments.data, labelled=False), **SWITCHES.get(method, {})}
    fields["backbone"] = replace(recipe.backbone, image_size=arguments.size)
    if method == "dino":
        crops: Crops = recipe.crops
        small = replace(crops.small, size=max(recipe.backbone.patch_size, arguments.size * 96 // 224))
        large = {name: replace(getattr(crops, name), size=arguments.size) for name in ("first", "second")}
        fields["crops"] = replace(crops, **large, small=small)
        fields["outputs"] = arguments.words
    else:
        fields["view"] = replace(recipe.view, size=arguments.size)
        tokenizer = dall_e(arguments) if method == "beit_dall_e" else recipe.tokenizer
        fields["tokenizer"] = replace(tokenizer, words=arguments.words)
    return replace(recipe, **fields)


def seconds(work: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """The median time of `work` after one round that does not count."""
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def share(step: Callable[[], None], part: nn.Module, rounds: int, device: torch.device) -> float:
    """The median share of `step` that its calls of `part` take, in the same steps, after one that does not count."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    shares: list[float] = []
    spent: list[float] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_: spent.append(-now())),
        part.register_forward_hook(lambda *_: spent.append(now())),
    ]
    for _ in range(rounds + 1):
        spent.clear()
        begun = now()
        step()
        shares.append(sum(spent) / (now() - begun))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares[1:])


def build(method: str, experiment: Pretraining, arguments: argparse.Namespace) -> tuple[nn.Module, Callable]:
    """The networks, and what gives a batch's loss."""
    if method == "timm_beit":
        module: Any = TimmBEiT(arguments.model, arguments.size, arguments.words)
    elif method == "timm_mae":
        module = TimmMAE(arguments.model, arguments.size)
    elif method == "timm_dino":
        module = TimmDINO(arguments.model, arguments.size, arguments.words)
    else:
        module = experiment.build_task()
        return module, lambda batch: module(batch, "train")["loss"]
    return module, module


def measure(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, MB, and shares of the step for words and of time for waiting; for a process of its own."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, rounds = torch.device(arguments.device), arguments.rounds
    experiment = experiment_of(method.removeprefix("timm_").replace("mae", "beit"), arguments)
    dataset = experiment.train_dataset()
    batch = default_collate([dataset[number % len(dataset)] for number in range(arguments.batch)])
    batch = type(batch)(*(part.to(device) for part in batch))
    module, loss = build(method, experiment, arguments)
    module.to(device).train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if hasattr(module, "after_step"):
            module.after_step(1, 100)

    taken = seconds(step, rounds, device)
    on_card = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_card else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"method": method, "seconds": taken, "memory": peak / 1e6, "words": None, "waiting": None}
    if isinstance(module, MaskedTask):
        found["words"] = share(step, module.tokenizer, rounds, device)
    if not method.startswith("timm_"):
        found["waiting"] = waiting(step, experiment, arguments)
    return found


def waiting(step: Callable[[], None], experiment: Pretraining, arguments: argparse.Namespace) -> float:
    """The share of time in which a training with workers has no batch to go on with."""
    steps = arguments.rounds + 2
    loader = LoaderConfig(workers=arguments.workers)
    batches = training_batches(experiment.train_dataset(), batch_size=arguments.batch, steps=steps, loader=loader)
    next(batches), next(batches)  # the workers have begun
    waited, begun = 0.0, time.perf_counter()
    for _ in range(arguments.rounds):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        step()
        if arguments.device.startswith("cuda"):
            torch.cuda.synchronize()
    return waited / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--output", type=Path, default=Path("pretrain_speed"))
    parser.add_argument("--model", default="vit_small_patch16_224", help="a ViT, under timm's name")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--words", type=int, default=8192, help="of the tokenizer; DINO's outputs")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()

    # A forked process has imported all and done nothing, but cannot use a GPU that its parent has asked about.
    context = get_context("spawn" if arguments.device.startswith("cuda") else "fork")
    results = []
    for method in arguments.methods:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            results.append(pool.submit(measure, method, arguments).result())

    beit = next((result["seconds"] for result in results if result["method"] == "beit"), None)
    rows = [
        (
            result["method"],
            f"{arguments.batch / result['seconds']:.4g}",
            f"{1000 * result['seconds']:.4g}",
            "" if beit is None else f"{result['seconds'] / beit:.3f}",
            f"{result['memory']:.0f}",
            "" if result["words"] is None else f"{100 * result['words']:.1f}",
            "" if result["waiting"] is None else f"{100 * result['waiting']:.1f}",
        )
        for result in results
    ]
    print(write_table(arguments.output / "speed", HEADER, rows))


if __name__ == "__main__":
    main()
