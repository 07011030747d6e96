"""Figures 4.1 to 4.4 and Tables 4.1 and 5.1 of the thesis: paths and numbers of invertible residual networks."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf, nan
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.experiments.error_rates import predict
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines, load_samples
from robustbench_inv.models.conditional_flow import ConditionalFlow, bits_per_dimension
from robustbench_inv.models.iresnet import InvertibleResNet, residual_blocks, safe_radii
from robustbench_inv.models.layers.residual import ResidualBlock, linear_residual
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    LinePanel,
    LinePanels,
    MeasuredNumber,
)

__all__ = [
    "bits_per_dimension_numbers",
    "crossings",
    "measure_dynamics",
    "measure_residual_networks",
    "network_numbers",
]


@torch.no_grad()
def measure_residual_networks(
    request: ExperimentRequest,
    models: Mapping[str, str],
    iterations: Sequence[int] = (),
    rows: Sequence[str] = ("Error",),
    further: Sequence[Mapping[str, Any]] = (),
) -> ExperimentResult:
    """Return error, spectral norms and reconstruction errors of invertible residual networks.

    Args:
        request: held-out data and samples; reconstructions use the first 100 of them.
        models: by column, the name of an ``InvertibleResNet`` or of a density network.
        iterations: fixed-point iterations per block after which images are compared.
        rows: rows that a model without weights keeps, with nan.
        further: errors on other data: ``row``, ``data`` (name of the data set) and ``models`` (model name by column).

    References:
        Behrmann, thesis, table 4.1, figures 4.2 to 4.4 and table 5.1.
    """
    dataset = request.open_dataset()
    ids = request.draw(dataset)
    data = load_samples(dataset, ids, request.device)
    numbers, digests = list[MeasuredNumber](), dict[str, str]()
    for column, name in models.items():
        if name not in entries("models"):
            request.report(f"{name} is not trained yet")
            numbers += [MeasuredNumber(row, column, nan) for row in rows]
            continue
        model = load_model(name, device=request.device)
        digests[model.name] = model.digest
        network = getattr(model.classifier, "module", model.classifier)
        if isinstance(network, InvertibleResNet):
            wrong = model(data.images).logits.argmax(1) != data.labels
            numbers.append(MeasuredNumber.of("Error", column, wrong.cpu().numpy()))
            few = data.images[:100]
            numbers += network_numbers(network, few, column, iterations)
            radii = safe_radii(network.certified_radii(data.images, data.labels))
            numbers.append(
                MeasuredNumber("Median certified l2 radius", column, float(radii.median()))
            )
        if isinstance(network, ConditionalFlow):
            numbers += bits_per_dimension_numbers(network, data.images, column)
    numbers += _further_errors(request, further, digests)
    lines = _reconstruction(numbers) if iterations else ()
    return ExperimentResult(
        dataset.name, len(ids), digests, tuple(numbers), lines=lines, left_out=request.left_out
    )


def _further_errors(
    request: ExperimentRequest, further: Sequence[Mapping[str, Any]], digests: dict[str, str]
) -> Iterator[MeasuredNumber]:
    """Yield the errors of models on other data sets, where these are at hand; add the digests of the models."""
    main = {"row": "Error", "data": request.dataset}
    for about in request.available([main, *further], "row", "data"):
        if about is main:
            continue
        dataset = request.open_dataset(request.resolve_dataset(str(about["data"])))
        data = load_samples(dataset, request.draw(dataset))
        for column, name in about["models"].items():
            if name not in entries("models"):
                request.report(f"{name} is not trained yet")
                yield MeasuredNumber(str(about["row"]), column, nan)
                continue
            model = load_model(name, device=request.device)
            digests[model.name] = model.digest
            wrong = predict(model.classifier, data.images, data.ids) != data.labels
            yield MeasuredNumber.of(str(about["row"]), column, wrong.numpy())


def _reconstruction(numbers: Sequence[MeasuredNumber]) -> tuple[LinePanels, ...]:
    panel = counted_lines("Largest pixel error", numbers)
    if not panel.lines:
        return ()
    return (
        LinePanels(
            name="reconstruction",
            title="Error of reconstructed images by number of fixed-point iterations",
            caption="Largest error of a pixel over the first 100 images, for pixels in [0, 1]. Each block converges at the rate of its Lipschitz constant, at most c³, until errors are those of rounding.",
            x="fixed-point iterations per block",
            y="largest pixel error",
            panels=(panel,),
            log=True,
        ),
    )


def bits_per_dimension_numbers(
    network: ConditionalFlow, images: Tensor, column: str
) -> list[MeasuredNumber]:
    """Return the bits per dimension of dequantised images, and their standard error.

    Each of at least ten batches has noise and probes of its own, so that the deviation of the batches contains the error
    of the log-determinants: one set of probes for all images would make the same error on each of them.
    """
    blocks, bits = list(residual_blocks(network)), list[float]()
    seeds = iter(range(2**20, 2**30))  # beyond those of the blocks
    own = [block.seed for block in blocks]
    for batch in torch.tensor_split(images, min(len(images), max(10, len(images) // 100))):
        for block in blocks:
            block.seed = next(seeds)
        noise = torch.rand(batch.shape, generator=torch.Generator().manual_seed(next(seeds))) - 0.5
        likelihoods = network.marginal(batch + noise.to(batch) / 255)
        bits.append(float(bits_per_dimension(likelihoods, batch[0].numel()).mean()))
    for block, seed in zip(blocks, own, strict=True):
        block.seed = seed
    error = stdev(bits) / len(bits) ** 0.5 if len(bits) > 1 else nan
    return [
        MeasuredNumber("Bits per dimension", column, fmean(bits)),
        MeasuredNumber("Standard error of the bits per dimension", column, error),
    ]


@torch.no_grad()
def network_numbers(
    network: InvertibleResNet, images: Tensor, column: str, iterations: Sequence[int]
) -> Iterator[MeasuredNumber]:
    """Yield spectral norms and, after each number of iterations, the largest error of a reconstructed pixel."""
    blocks = list(residual_blocks(network))
    norms = [layer.operator_norm() for block in blocks for layer in block.layers()]
    yield MeasuredNumber("Largest spectral norm of a convolution", column, max(norms))
    yield MeasuredNumber("Smallest spectral norm of a convolution", column, min(norms))
    largest = max(block.lipschitz() for block in blocks)
    yield MeasuredNumber("Largest Lipschitz constant of a block", column, largest)
    code = network.encode(images)
    for count in iterations:
        errors = (network.decode_after(code, count) - images).abs()
        error = float(errors.nan_to_num(nan=inf).max())  # nan: infinity less infinity
        times = "iteration" if count == 1 else "iterations"
        yield MeasuredNumber(f"Largest pixel error, {count} {times}", column, error)


def measure_dynamics(
    request: ExperimentRequest, blocks: int = 10, width: int = 64, steps: int = 1_000
) -> ExperimentResult:
    """Train a residual network and an i-ResNet on one dimension, and count the paths that cross.

    Both map [−2, 2] to a noisy x³ after half of the blocks and to noisy x after all. Between blocks a path is linear.

    Args:
        request: seed of weights and noise.
        blocks: residual blocks.
        width: hidden units of each block.
        steps: of Adam.

    References:
        Behrmann, thesis, figure 4.1; Behrmann et al., Invertible residual networks, ICML 2019, figure 1.
    """
    numbers, panels = list[MeasuredNumber](), list[LinePanel]()
    for column, coefficient in (("standard", None), ("invertible", 0.9)):
        request.report(f"{column}: {steps} steps")
        chain = _train_paths(request.seed, blocks, width, coefficient, steps)
        paths = _paths(chain, torch.linspace(-2, 2, 401)[:, None])
        error = (paths[:, -1] - paths[:, 0]).square().mean().sqrt()
        half = (paths[:, blocks // 2] - paths[:, 0] ** 3).square().mean().sqrt()
        for row, value in (
            ("Pairs of neighbouring paths that cross, of 400", float(crossings(paths))),
            ("Smallest derivative of the whole map", float((paths[:, -1].diff() / 0.01).min())),
            ("Root mean square error at half depth", float(half)),
            ("Root mean square error at full depth", float(error)),
            ("Largest Lipschitz constant of a block", max(_block_norms(chain))),
        ):
            numbers.append(MeasuredNumber(row, column, value))
        depth = tuple(map(float, range(blocks + 1)))
        shown = {f"{float(path[0]):.2f}": (depth, tuple(path.tolist())) for path in paths[::8]}
        panels.append(LinePanel(column, shown))
    lines = LinePanels(
        name="dynamics",
        title="Paths of inputs through the blocks",
        caption="Each line is one input in [-2, 2]. The paths of a standard residual network may cross, so that it is not a bijection of the whole path.",
        x="block",
        y="x",
        panels=tuple(panels),
        thin=True,
    )
    return ExperimentResult("line", len(paths), {}, tuple(numbers), lines=(lines,))


def _train_paths(
    seed: int, blocks: int, width: int, coefficient: float | None, steps: int
) -> list[ResidualBlock]:
    torch.manual_seed(seed)
    chain = [ResidualBlock(linear_residual((1, width, 1), coefficient)) for _ in range(blocks)]
    optimiser = torch.optim.Adam([w for block in chain for w in block.parameters()], 2e-3)
    for _ in range(steps):
        x = 4 * torch.rand(256, 1) - 2
        noisy = [x**3 + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)]
        y, loss = x, torch.zeros(())
        for number, block in enumerate(chain, 1):
            y = y + block.residual(y)
            if number in (blocks // 2, blocks):
                loss = loss + (y - noisy[number == blocks]).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return [block.eval().requires_grad_(False) for block in chain]


def _paths(chain: Sequence[ResidualBlock], x: Tensor) -> Tensor:
    """Return the inputs and the outputs of each block, (n, blocks + 1)."""
    found = [x]
    for block in chain:
        found.append(found[-1] + block.residual(found[-1]))
    return torch.cat(found, 1)


def _block_norms(chain: Sequence[ResidualBlock]) -> list[float]:
    for block in chain:
        for layer in block.layers():
            layer.measure()
    return [block.lipschitz() for block in chain]


def crossings(paths: Tensor) -> int:
    """Return how many neighbouring paths (n, depth) in ascending order change their order at some depth.

    Example:
        >>> crossings(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.5, 2.0], [2.0, 3.0, 3.0]]))
        1
    """
    return int((paths.diff(dim=0) <= 0).any(1).sum())
