"""Photographs on an untrained ImageNet-sized fiRevNet, for Table 1 and Figure 4 of Excessive invariance."""

from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.firevnet import IMAGENET, FiRevNet, convolutional
from robustbench_inv.models.layers.coupling import Coupling
from robustbench_inv.results.experiment_result import ExperimentResult, ImageGrid, MeasuredNumber
from robustbench_inv.results.pixels import to_pixels

__all__ = ["draw_photographs", "measure_architecture", "open_photographs", "untrained_firevnet"]


SHAPE, CLASSES = (3, 224, 224), 1000

THUMBNAIL_PIXELS = 84
"""Side of a drawn photograph in pixels."""

COLUMNS_PER_GRID = 10


def measure_architecture(
    request: ExperimentRequest, column: str, photographs: int = 20
) -> ExperimentResult:
    """Return the number of parameters and the inversion errors of the untrained network.

    Args:
        request: an upper limit of the number of photographs, and the seed of the network.
        column: column of the table.
        photographs: number of photographs that are encoded and decoded, at most 20.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, table 1 and appendix B.3.
    """
    most = request.samples if isinstance(request.samples, int) else photographs
    images = open_photographs(min(photographs, most))
    request.report(f"encoding and decoding {len(images)} photographs in float32 and float64")
    model = untrained_firevnet(images, request.seed)
    parameters = sum(p.numel() for p in model.parameters())
    numbers = [MeasuredNumber("Parameters", column, parameters)]
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        pixel, logit = _inversion_errors(model.to(dtype), images.to(dtype))
        numbers += [
            MeasuredNumber(f"Largest error of a reconstructed pixel, {name}", column, pixel),
            MeasuredNumber(f"Largest error of a metamer's logit, {name}", column, logit),
        ]
    return ExperimentResult("photographs of ImageNet", len(images), {}, tuple(numbers))


def draw_photographs(count: int, seed: int = 0) -> list[ImageGrid]:
    """Return grids of sources, metamers and donors with ten columns each.

    Args:
        count: number of photographs, at most 20; each one is the donor of the next.
        seed: seed of the network.
    """
    images = open_photographs(count)
    metamers, donors = _metamers(untrained_firevnet(images, seed), images), images.roll(1, 0)
    rows = torch.stack([images, metamers, donors])
    seen = to_pixels(_thumbnails(rows).numpy(), (0.0, 1.0))
    return [
        ImageGrid(
            name=f"photographs-{number + 1}",
            title="Metamers of photographs, untrained network",
            caption="The ImageNet-sized fiRevNet at 224 × 224 with random weights. The metamers look like their donors, and "
            "the inverse is exact: the nuisance variables determine the image even without training. "
            "These images allow no conclusion about a trained network.",
            rows=("logits of", "metamer", "nuisances of"),
            groups=(("fiRevNet48, untrained", seen[:, first : first + COLUMNS_PER_GRID].shape[1]),),
            images=seen[:, first : first + COLUMNS_PER_GRID],
        )
        for number, first in enumerate(range(0, count, COLUMNS_PER_GRID))
    ]


def open_photographs(count: int = 20) -> Tensor:
    """Return ImageNet images that are part of Foolbox, (count, 3, 224, 224) in [0, 1]."""
    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)  # Foolbox imports a deprecated module of SciPy
        from foolbox.models.pytorch import PyTorchModel
        from foolbox.utils import samples
    model = PyTorchModel(nn.Identity().eval(), bounds=(0, 1), device="cpu")
    images: Tensor = samples(model, dataset="imagenet", batchsize=count)[0]
    return images


@torch.no_grad()
def untrained_firevnet(images: Tensor, seed: int = 0) -> FiRevNet:
    """Return the network with random couplings, its actnorms initialised on the images, in evaluation mode.

    The couplings' last layers are random as well. With the zeros from which training starts, every coupling would be
    the identity, and the inversion errors would be too small.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = convolutional(SHAPE, CLASSES, **IMAGENET)
        for part in model.modules():
            if isinstance(part, Coupling) and isinstance(part.network, nn.Sequential):
                last = part.network[-1]
                assert isinstance(last, nn.Conv2d)
                last.reset_parameters()
    model.train()(images)
    return model.eval()


@torch.no_grad()
def _inversion_errors(model: FiRevNet, images: Tensor) -> tuple[float, float]:
    """Return the largest error of a pixel of F⁻¹(F(x)), and of a logit of a re-encoded metamer."""
    code = model.encode(images)
    pixel = (model.decode(code) - images).abs().max().item()
    again = model(_metamers(model, images))
    return pixel, (again - model.split(code)[0]).abs().max().item()


@torch.no_grad()
def _metamers(model: FiRevNet, images: Tensor) -> Tensor:
    semantic, nuisance = model.split(model.encode(images))
    return model.decode(model.join(semantic, nuisance.roll(1, 0)))


def _thumbnails(rows: Tensor) -> Tensor:
    """Return images (rows, n, c, h, w), averaged down to THUMBNAIL_PIXELS × THUMBNAIL_PIXELS pixels."""
    flat = rows.flatten(0, 1).clamp(0, 1)
    small = interpolate(flat, size=(THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), mode="area")
    return small.reshape(*rows.shape[:3], THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
