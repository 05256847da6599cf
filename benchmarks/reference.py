"""The reference method: against the authors' own code, its shortcut, its ablations, its cost.

    python benchmarks/reference.py --volumes FOLDER [--authors CHECKOUT] [--parts PART,PART]

Everything here is cut down to what a CPU does in minutes, and says so in the results: the side-by-side runs
on a 26 x 24 x 24 input, the ablations on a 24 x 24 x 24 crop with a short training. `--authors` is a checkout
of UCSC-VLAA/MicroDiffusion; its modules are imported and run here, on the CPU. Each part replaces its own
entry in benchmarks/results/reference.json, with the machine and the commit that it was run on; the ablations
are written variant by variant.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # an optimiser imports it, and must not meet the stand-ins below
from measuring import ROOT, machine, scores_of

from microdiffusion.config.engine_tables import ReferenceConfig
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, read_truth
from microdiffusion.engines.projections.closed_form import nearest_slab
from microdiffusion.engines.reference import ddpm
from microdiffusion.engines.reference.condition import PositionEmbedding, ProjectionEmbedding, encode_position
from microdiffusion.engines.reference.method import ReferenceMethod
from microdiffusion.engines.reference.mlp_inr import FourierMlp, fit_field, inr_rate
from microdiffusion.engines.reference.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Callable

VOLUME = "cells_bigstream_high"
CPU = torch.device("cpu")
TWO = ReferenceConfig(inr_steps=2, inr_batch_pixels=256, bfloat16=True)


def db(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the PSNR (dB) between two answers at a data range of 1."""
    return float(-10 * torch.log10((one - two).square().mean().clamp_min(1e-20)))


def case_of(folder: Path, size: tuple[int, int, int], step: float, noise: float) -> Case:
    """Return the middle of the benchmark's volume under the protocol."""
    return make_case(read_truth(folder / f"{VOLUME}.h5", size), Protocol(step=step, noise=noise))


def tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the operator (M, Z) and the projections (M, Y, X)."""
    return torch.from_numpy(case.operator.astype(np.float32)), torch.from_numpy(case.sweep.projections)


# Beside the authors' code ---------------------------------------------------------------------------


class _Encoder:
    """Stands in for their pickled encoder: the same features of our frequencies."""

    def __init__(self, frequencies: torch.Tensor) -> None:
        self.frequencies = frequencies

    def embedding(self, place: torch.Tensor) -> torch.Tensor:
        angle = (2.0 * np.pi * place) @ self.frequencies.T
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


@contextlib.contextmanager
def authors_modules(folder: Path) -> Any:
    """Make a folder of the authors' importable; what they import and we do not need is a stand-in."""
    absent = ("cv2", "imageio", "tqdm", "torch.utils.tensorboard", "torchvision", "torchvision.utils")
    stands_in = {name: mock.MagicMock() for name in (*absent, "matplotlib", "matplotlib.pyplot")}
    stands_in["tqdm"].tqdm = lambda items, **_: items
    before, place = set(sys.modules), os.getcwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        with (
            mock.patch.dict(sys.modules, stands_in),
            mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self),
            mock.patch.object(torch.cuda, "device_count", return_value=1),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield importlib.import_module
    finally:
        os.chdir(place)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def copy_weights(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    """Copy parameters in their order; the shapes must agree."""
    with torch.no_grad():
        for one, two in zip(source, target, strict=True):
            two.copy_(one)


def inr_beside(authors: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Return how far our INR and theirs are apart after the same training from the same weights."""
    case = case_of(folder, (26, 24, 24), 6, 0.0)
    truth, (operator, images) = case.truth, tensors(case)
    slices, rows, columns = truth.shape
    ours = FourierMlp(truth.shape)
    with (
        authors_modules(authors / "code" / "INR") as imported,
        mock.patch.object(torch, "load", return_value=_Encoder(ours.frequencies)),
    ):
        training = imported("tasks.any_folder.train")
        theirs = imported("models.nerf_models").OfficialNerfMean(512, 0, 64)
        kept = [
            value
            for name, value in theirs.named_parameters()
            if not name.startswith(("fc_density", "fc_feature"))
        ]
        used = [ours.entry, *ours.before, ours.skip, *ours.after, ours.narrow, ours.head]
        copy_weights([value for layer in used for value in (layer.weight, layer.bias)], kept)
        scene = mock.Mock(imgs=torch.from_numpy(truth)[..., None])
        places = training.get_all_pos_enc(rows, columns, slices, 6, True, 0)
        ground = training.get_all_gt_img(scene, slices, 6, True, 0)
        optimiser = torch.optim.Adam(theirs.parameters(), lr=1e-3)
        # Their milestones are every 10 of 5,000 epochs; here as many decays in as many epochs as are run.
        begun = time.process_time()
        config = ReferenceConfig(inr_steps=epochs)
        for epoch in range(epochs):
            optimiser.param_groups[0]["lr"] = inr_rate(config, epoch)
            losses = training.train_one_epoch(
                6, slices, places, ground, scene, optimiser, None, None, theirs, None, None, CPU, None, None
            )
        their_seconds = time.process_time() - begun
        with torch.no_grad():
            everywhere = training.get_all_pos_enc(rows, columns, slices, 6, True, 5)
            middle_of_six = theirs(everywhere, None, None, slices, 6, test=True)[3][..., 0]
    begun = time.process_time()
    loss = fit_field(ours, operator, images, config)
    our_seconds = time.process_time() - begun
    first = 3
    mine = ours.volume()[first : first + len(middle_of_six)]
    scored = truth[first : first + len(middle_of_six)]
    return {
        "input": f"{VOLUME}, middle 26 x 24 x 24, slab 6, step 6, no noise",
        "epochs, full batch": epochs,
        "theirs": scores_of(middle_of_six.numpy(), scored, np.ones(len(scored), bool))
        | {"loss": losses["L2"]},
        "ours": scores_of(mine.numpy(), scored, np.ones(len(scored), bool)) | {"loss": loss},
        "difference_db": db(mine, middle_of_six),
        "cpu_seconds": {"theirs": their_seconds, "ours": our_seconds},
    }


@torch.no_grad()
def pipeline_beside(authors: Path) -> dict[str, Any]:
    """Compare every network, the loss and sampling with the same weights and the same noise."""
    torch.manual_seed(0)
    unet, where, seen = UNet(160).eval(), PositionEmbedding(), ProjectionEmbedding()
    small, large = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 128, 128)
    steps = 30
    noises = [torch.randn(1, 1, 32, 32) for _ in range(steps)]
    with authors_modules(authors / "code") as imported:
        sys.modules.pop("utils", None)
        embedding, diffusion = imported("embedding"), imported("diffusion")
        betas = imported("utilsdiff").get_named_beta_schedule(num_diffusion_timesteps=1000)
        their_unet = imported("unet").Unet(1, 64, 1, [1, 2, 2, 2], 2, 160, True, 0.1).eval()
        copy_weights(list(unet.parameters()), list(their_unet.parameters()))
        their_where, their_seen = embedding.ConditionalEmbedding(21, 32, 32), embedding.INREmbedding(128)
        copy_weights(list(where.parameters()), list(their_where.parameters()))
        copy_weights(list(seen.parameters()), list(their_seen.parameters()))
        z, t = torch.tensor([-0.7, 0.1]), torch.tensor([3, 700])
        condition = torch.randn(2, 160)
        result = {
            "parameters": {
                "U-Net": [sum(p.numel() for p in net.parameters()) for net in (their_unet, unet)],
                "E_img": [sum(p.numel() for p in net.parameters()) for net in (their_seen, seen)],
            },
            "largest_difference": {
                "U-Net": float((their_unet(small, t, condition) - unet(small, t, condition)).abs().max()),
                "E_pos": float(
                    (their_where(imported("pos_enc").encode_position(z[:, None])) - where(z)).abs().max()
                ),
                "E_img, training mode": float((their_seen(large) - seen(large)).abs().max()),
                "position code": float(
                    (imported("pos_enc").encode_position(z[:, None]) - encode_position(z)).abs().max()
                ),
            },
        }
        process = diffusion.GaussianDiffusion(torch.float32, their_unet, betas, 1.8, 0.3, CPU)
        prior, told = torch.rand(1, 1, 32, 32), condition[:1]
        # Their loop starts at T: the last `steps` of 1000 are a process of the first `steps` betas.
        short = diffusion.GaussianDiffusion(torch.float32, their_unet, betas[:steps], 1.8, 0.3, CPU)
        with (
            mock.patch.object(torch, "randn", return_value=prior),
            mock.patch.object(torch, "randn_like", side_effect=[noise.clone() for noise in noises]),
        ):
            theirs = short.sample((1, 1, 32, 32), prior, cemb=told)
        eps = noises[-1]
        with (
            mock.patch.object(torch, "randint", return_value=torch.tensor([400])),
            mock.patch.object(torch, "randn_like", return_value=eps),
        ):
            their_loss, _ = process.trainloss([prior[0]] * 6, small[:1], cembs=[told] * 6)
    schedule = ddpm.Schedule(1000)

    def predict(state: torch.Tensor, t: int, conditional: bool) -> torch.Tensor:
        return unet(state, torch.tensor([t]), told if conditional else torch.zeros_like(told))

    with mock.patch.object(ddpm, "_noise", lambda like, seed, t, first: noises[steps - 1 - t]):
        state = ddpm.draw(schedule, predict, prior, ddpm.Sampling(steps))
    clean = ddpm.interpolated(small[:1], prior, 0.1)
    noised = schedule.noised(clean, torch.tensor([400]), eps)
    loss = (unet(noised, torch.tensor([400]), told) - eps).square().mean()
    result["sampling, the last 30 steps, same noise: difference_db"] = db(theirs, state.clamp(-1, 1))
    result["noise loss, same noise"] = {"theirs": float(their_loss), "ours": float(loss)}
    return result


# Shortcut, ablations, cost --------------------------------------------------------------------------


def ablations(
    folder: Path, epochs: int, inr_steps: int, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Return scores of each switch on a small crop, and the shortcut against all 1000 steps.

    The INR is the same for all variants of the same step: it is fitted once. `save` gets the result after
    every variant.
    """
    size = (24, 24, 24)
    settings: dict[str, Any] = {
        "inr_steps": inr_steps,
        "inr_batch_pixels": 192,
        "epochs": epochs,
        "bfloat16": True,
        # The same cycles per voxel as at 128: unscaled, it is five times as many.
        "inr_bandwidth": 4.0 * size[2] / 128,
    }
    table: dict[str, Any] = {}
    result: dict[str, Any] = {
        "input": f"{VOLUME}, middle {size}, slab 6, noise 0.01, step 6 unless said",
        "shortened": {
            key: {"here": settings[key], "paper": getattr(ReferenceConfig(), key)} for key in settings
        },
        "scores": table,
    }
    fields: dict[float, FourierMlp] = {}

    def keep(label: str, volume: torch.Tensor, case: Case, **more: Any) -> None:
        table[label] = scores_of(volume.numpy(), case.truth, case.seen) | more
        save(result)
        print(label, {key: np.round(value, 3) for key, value in table[label].items()}, flush=True)

    def run(label: str, step: float = 6, **changes: Any) -> tuple[ReferenceMethod, Case]:
        case = case_of(folder, size, step, 0.01)
        operator, images = tensors(case)
        config = ReferenceConfig(**(settings | changes))
        method = ReferenceMethod(config, case.truth.shape, CPU)
        begun = time.process_time()
        if step not in fields:
            fields[step] = FourierMlp(case.truth.shape, bandwidth=config.inr_bandwidth)
            fit_field(fields[step], operator, images, config)
            keep(f"INR alone, step {step:g}", fields[step].volume(), case)
        method.field = fields[step]
        method.train(operator, images)
        volume, evaluations = method.sample(images, nearest_slab(case.sweep.stage.z_um, size[0]))
        spent = time.process_time() - begun
        away = db(volume, method.prior())
        keep(label, volume, case, evaluations=evaluations, cpu_seconds=spent, from_averaged_inr_db=away)
        return method, case

    method, case = run("as in the paper")
    paper, images, nearest = method.config, tensors(case)[1], nearest_slab(case.sweep.stage.z_um, size[0])
    keep("INR averaged over neighbours, step 6", method.prior(), case)
    for label, changes in {
        "without guidance": {"guidance": 0.0},
        "shortcut 16 instead of 4": {"shortcut": 16},
    }.items():
        method.config = paper.model_copy(update=changes)
        volume, evaluations = method.sample(images, nearest)
        keep(label, volume, case, evaluations=evaluations)
    method.config = paper
    run("without E_img", image_condition=False)
    run("without E_pos", position_condition=False)
    run("condition dropout 0.1", condition_dropout=0.1)
    run("T = 100", timesteps=100)
    run("neighbours centred", neighbours="centred")
    run("neighbours none", neighbours="none")
    run("without interpolation (T = 50, without guidance)", interpolation=1.0, timesteps=50, guidance=0.0)
    run("step 8", step=8)
    some = range(12, 13)
    begun = time.process_time()
    last, few = method.sample(images, nearest, wanted=some)
    method.config = method.config.model_copy(update={"shortcut": 0})
    every, many = method.sample(images, nearest, wanted=some)
    result["shortcut"] = {
        "slice": some.start,
        "last 4 against all 1000 steps, db": db(last, every),
        "evaluations": [few, many],
        "cpu_seconds of both": time.process_time() - begun,
        "all 1000 steps against the averaged INR, db": db(every, method.prior()[some.start : some.stop]),
    }
    save(result)
    print(result["shortcut"], flush=True)
    return result


def update(unet: UNet, optimiser: torch.optim.Optimizer, given: tuple[torch.Tensor, ...]) -> None:
    """Make one update of the U-Net."""
    unet(*given).float().square().mean().backward()
    optimiser.step()


def cost() -> dict[str, Any]:
    """Return CPU seconds of each part at 128 x 128 pixels, and what they come to for a volume."""
    matrix = np.kron(np.eye(21), np.full((1, 6), 1 / 6))
    operator, images = torch.from_numpy(matrix.astype(np.float32)), torch.rand(21, 128, 128)
    result: dict[str, Any] = {"volume": "126 x 128 x 128, 21 projections", "cpu_seconds": {}}
    seconds = result["cpu_seconds"]

    def clock(label: str, action: Any) -> None:
        begun = time.process_time()
        action()
        seconds[label] = time.process_time() - begun
        print(label, seconds[label], flush=True)

    field = FourierMlp((126, 128, 128))
    fit_field(field, operator, images, TWO)
    clock("2 INR updates of 256 pixels, bfloat16", partial(fit_field, field, operator, images, TWO))
    unet = UNet(160)
    optimiser = torch.optim.AdamW(unet.parameters())
    given = torch.rand(1, 1, 128, 128), torch.tensor([9]), torch.rand(1, 160)
    with torch.no_grad():
        clock("1 evaluation of the U-Net, float32", partial(unet, *given))
    clock("1 update of the U-Net, float32", partial(update, unet, optimiser, given))
    fit, evaluation, training = seconds.values()
    evaluations = 126 * 2
    result["extrapolated, hours of one core"] = {
        "INR, 5,000 full batches": 5000 * 64 * fit / 2 / 3600,
        "INR, 1,000 updates of 256 pixels": 1000 * fit / 2 / 3600,
        "denoiser's training, 2,001 epochs": 2001 * 21 * training / 3600,
        "sampling, 1000 steps": evaluations * 1000 * evaluation / 3600,
        "sampling, the last 4": evaluations * 4 * evaluation / 3600,
    }
    result["network evaluations a volume"] = {"1000 steps": evaluations * 1000, "the last 4": evaluations * 4}
    return result


def main() -> None:
    """Run the parts that are asked for, and add them to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--parts", default="inr,pipeline,cost,ablations")
    parser.add_argument("--inr-epochs", type=int, default=100, help="of the side-by-side")
    parser.add_argument("--inr-steps", type=int, default=600, help="of the ablations")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "reference.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.json.read_text("utf-8")) if arguments.json.is_file() else {}

    def save(part: str, result: dict[str, Any]) -> None:
        results[part] = {"machine": about, **result}
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    about = machine()
    for part in arguments.parts.split(","):
        if part in ("inr", "pipeline") and arguments.authors is None:
            parser.error(f"the part {part} needs --authors")
        if part == "inr":
            save("inr beside theirs", inr_beside(arguments.authors, arguments.volumes, arguments.inr_epochs))
        elif part == "pipeline":
            save("pipeline beside theirs", pipeline_beside(arguments.authors))
        elif part == "cost":
            save(part, cost())
        elif part == "ablations":
            write = partial(save, part)
            write(ablations(arguments.volumes, arguments.epochs, arguments.inr_steps, write))
        else:
            parser.error(f"there is no part {part}")
        print(part, "done", flush=True)


if __name__ == "__main__":
    main()
