"""Draws the pictures of docs/concepts with the engine: ``python tools/pictures.py`` writes docs/images/*.svg.

Runs take about five minutes on one core and are kept in runs/pictures. Numbers in the pictures are those of the runs.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import robustbench_inv as rbi
from robustbench_inv.testing.toys import Toy, confident, quantised

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
RUNS = ROOT / "runs" / "pictures"
TEAL, RUST, GREY = "#00796b", "#c2410c", "#6b7280"
FIELDS = ["#b2dfdb", "#ffe0b2"]
STYLE = {
    "svg.hashsalt": "invbench",  # the same picture, the same file
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(figure: Figure, name: str) -> None:
    """Write a picture."""
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def true_class(points: Tensor) -> Tensor:
    """Return the classes (n,) of points (n, 2): above or below a wave."""
    return (points[:, 1] > 0.5 + 0.22 * torch.sin(5 * points[:, 0])).long()


def plane_network() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network of the plane with its training data, which leave the right half of the wave open."""
    torch.manual_seed(3)
    points = torch.rand(300, 2) * torch.tensor([0.62, 1.0])
    points = points[(points[:, 1] - 0.5 - 0.22 * torch.sin(5 * points[:, 0])).abs() > 0.06]
    labels = true_class(points)
    network = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(network(points), labels).backward()
        optimizer.step()
    network.bounds = (0.0, 1.0)
    return network.eval(), points, labels


def draw_plane(axes: Axes, network: nn.Module, points: Tensor, labels: Tensor) -> None:
    """Draw the classes of the network as areas, the true boundary as a line, and some data."""
    steps = torch.linspace(0, 1, 200)
    grid = torch.cartesian_prod(steps, steps)
    with torch.no_grad():
        found = network(grid).argmax(1).reshape(200, 200).T
    axes.contourf(steps, steps, found, levels=[-0.5, 0.5, 1.5], colors=FIELDS)
    axes.plot(steps, 0.5 + 0.22 * torch.sin(5 * steps), "--", color="black", linewidth=1.2)
    colors = [TEAL if label == 0 else RUST for label in labels[:70]]
    axes.scatter(*points[:70].T, s=9, c=colors, alpha=0.6, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])


def arrow(axes: Axes, start: Tensor, end: Tensor, text: str) -> None:
    """Draw an arrow from the clean input to the one that an attack found."""
    axes.annotate(
        "", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "linewidth": 1.8}
    )
    axes.plot(*start, "o", color="black", markersize=6)
    axes.annotate(
        text,
        (start + end).div(2).tolist(),
        (14, -12),
        textcoords="offset points",
        fontsize=9,
        weight="bold",
        va="top",
    )


def two_ways() -> None:
    """Draw one network of the plane that fails in both ways; the closest adversarial example is that of DeepFool."""
    network, points, labels = plane_network()
    start = torch.tensor([[0.36, 0.58]])
    run = rbi.evaluate(
        network,
        x=start,
        y=true_class(start),
        attack="deepfool",
        threat="none",
        out=RUNS / "plane",
        checks=False,
        keep_images=True,
        progress=False,
    )
    near = run.adversarial().x[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.1))
    for axes in (left, right):
        draw_plane(axes, network, points, labels)
    arrow(left, start[0], near, "other prediction,\nsame class")
    left.set_title("Too sensitive: a small change\nchanges the prediction", fontsize=11)
    far, end = blind_pair(network)
    arrow(right, far, end, "same prediction,\nother class")
    right.set_title("Too invariant: the class changes,\nthe prediction does not", fontsize=11)
    figure.text(
        0.5,
        0.02,
        "areas: what the network predicts    dashed: where the true class changes    dots: data",
        ha="center",
        fontsize=9,
        color=GREY,
    )
    save(figure, "two-ways")


def blind_pair(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a correct point, and the closest point of the other class with the same prediction."""
    steps = torch.linspace(0.05, 0.8, 76)
    grid = torch.cartesian_prod(steps, steps)
    with torch.no_grad():
        found = network(grid).argmax(1)
    start = torch.tensor([0.42, 0.36])
    wanted = network(start[None]).argmax(1)
    failures = grid[(found == wanted) & (true_class(grid) != true_class(start[None]))]
    clear = failures[(failures[:, 0] > 0.55)]
    return start, clear[(clear - start).norm(dim=1).argmin() if len(clear) else 0]


def digits() -> None:
    """Draw a digit, an adversarial example of it and a collision, with the answers of the network and of people."""
    common = {"samples": 20, "keep_images": True, "checks": False, "progress": False}
    small = rbi.evaluate(
        "mnist-cnn", attack="pgd", threat="linf=0.1", out=RUNS / "digits", **common
    )
    other = rbi.evaluate("mnist-cnn", attack="collision", out=RUNS / "digits", **common)
    adversarial, collision = small.adversarial(attack="pgd"), other.adversarial(attack="collision")
    failed = {
        each.sample: each
        for each in other.records()
        if each.goal_reached and each.oracle_label not in (None, each.label)
    }
    pick = next(
        i
        for i, s in enumerate(collision.samples.tolist())
        if s in failed and adversarial.broken[adversarial.samples.tolist().index(s)]
    )
    sample = int(collision.samples[pick])
    row = adversarial.samples.tolist().index(sample)
    label, shown = int(collision.y[pick]), failed[sample].oracle_label
    cells = [
        (collision.clean[pick], "the digit", f"people: {label}", f"network: {label}", TEAL),
        (
            adversarial.x[row],
            "changed by at most 0.1",
            f"people: {label}",
            f"network: {int(adversarial.predictions[row])}",
            RUST,
        ),
        (
            collision.x[pick],
            "made from another class",
            f"people: {shown}",
            f"network: {label}",
            RUST,
        ),
    ]
    figure, all_axes = plt.subplots(1, 3, figsize=(7.5, 3.4))
    for axes, (image, title, people, network, color) in zip(all_axes, cells, strict=True):
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(f"{people}\n{network}", fontsize=11, color=color)
    save(figure, "digits")


def curve(model: object, attack: str, epsilons: Sequence[float], further: str = "") -> list[float]:
    """Return robust accuracies in per cent on 40 digits."""
    threat = "linf=" + ",".join(map(str, epsilons)) + further
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rbi.EvaluationWarning)  # these models fail on purpose
        run = rbi.evaluate(
            model,
            dataset="mnist5k",
            attack=attack,
            threat=threat,
            samples=40,
            out=RUNS / "curves",
            checks=False,
            progress=False,
        )
    return [100 * rate.value for rate in run.summary()[0].robust_accuracy]


def wrong_numbers() -> None:
    """Draw what weak evaluations report of one network, and what an attack that fits finds."""
    network = rbi.load_model("mnist-cnn").classifier
    honest = Toy(network.module, 10, (0.0, 1.0))
    epsilons = [0.02, 0.05, 0.1, 0.15, 0.2]
    cases = [
        (
            "inputs rounded to 16 levels",
            {"rounded": quantised(honest, 16)},
            "pgd",
            ":guide=mnist-cnn",
        ),
        (
            "logits times 1000, cross-entropy",
            {"confident": confident(honest, 1000.0)},
            "pgd:loss=ce",
            "",
        ),
        ("three short steps", {"plain": honest}, "pgd:steps=3,rel_step=0.1", ""),
    ]
    figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.3), sharey=True)
    for axes, (title, model, weak, further) in zip(all_axes, cases, strict=True):
        axes.plot(epsilons, curve(model, weak, epsilons), "o--", color=RUST, label="reported: PGD")
        axes.plot(
            epsilons,
            curve(model, "pgd-tuned", epsilons, further),
            "o-",
            color=TEAL,
            label="found: a fitting attack",
        )
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("largest change of a pixel")
        axes.set(ylim=(-3, 103), xticks=epsilons)
    all_axes[0].set_ylabel("robust accuracy, %")
    all_axes[1].legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.02, 0.9))
    save(figure, "wrong-numbers")


def adaptive() -> None:
    """Draw a network of the plane that rejects uncertain points, with a naive and an adaptive attack."""
    network, points, labels = plane_network()
    start = torch.tensor([0.30, 0.52])
    steps = torch.linspace(0, 1, 240)
    grid = torch.cartesian_prod(steps, steps)
    with torch.no_grad():
        wrong = network(grid).argmax(1) != true_class(start[None])
        accepted = network(grid).softmax(1).max(1).values > 0.9
    naive = grid[wrong][(grid[wrong] - start).norm(dim=1).argmin()]
    both = grid[wrong & accepted]
    aware = both[(both - start).norm(dim=1).argmin()]
    figure, axes = plt.subplots(figsize=(5.6, 4.6))
    draw_plane(axes, network, points, labels)
    rejected = np.ma.masked_where(accepted.numpy().reshape(240, 240).T, np.ones((240, 240)))
    axes.contourf(steps, steps, rejected, levels=[0.5, 1.5], colors=["#9ca3af"], alpha=0.75)
    arrow(axes, start, naive, "")
    arrow(axes, start, aware, "")
    axes.annotate(
        "oblivious attack:\nrejected",
        naive.tolist(),
        (-14, -70),
        textcoords="offset points",
        fontsize=9,
        weight="bold",
        ha="right",
        arrowprops={"arrowstyle": "-", "color": GREY},
    )
    axes.annotate(
        "adaptive attack:\naccepted and wrong",
        aware.tolist(),
        (36, 30),
        textcoords="offset points",
        fontsize=9,
        weight="bold",
        arrowprops={"arrowstyle": "-", "color": GREY},
    )
    axes.set_title("Grey: inputs that the model rejects", fontsize=11)
    save(figure, "adaptive")


def oracles() -> None:
    """Draw collisions with the votes of the panel that judges them."""
    members = ["mnist-cnn", "mnist-lenet5", "mnist-vib:noise=mean", "mnist-c-dv"]
    run = rbi.evaluate(
        "mnist-mlp",
        attack="collision",
        samples=20,
        keep_images=True,
        checks=False,
        progress=False,
        out=RUNS / "oracles",
    )
    found = run.adversarial()
    oracle_labels = {record.sample: record.oracle_label for record in run.records()}
    votes = torch.stack([rbi.load_model(each)(found.x).logits.argmax(1) for each in members])
    figure, all_axes = plt.subplots(1, 5, figsize=(10, 3.4))
    order = votes.float().std(0).argsort(descending=True)
    for axes, i in zip(all_axes, order[[0, 1, 2, -2, -1]].tolist(), strict=True):
        panel = oracle_labels[int(found.samples[i])]
        axes.imshow(found.x[i, 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"was {int(found.y[i])}, network: {int(found.predictions[i])}", fontsize=10)
        result = "undecided" if panel is None or panel < 0 else f"class {panel}"
        axes.set_xlabel(
            f"votes: {' '.join(str(int(v)) for v in votes[:, i])}\npanel: {result}", fontsize=10
        )
    save(figure, "oracles")


def verdict() -> None:
    """Draw the way from an attack to the verdict."""
    boxes = [
        ("attack", "queries a copy of\nthe model, proposes\nan input"),
        ("judge", "evaluates it again:\noriginal model,\nother batch, budget"),
        ("record", "one line for each sample:\nbroken at which eps,\ndistances, status"),
        ("checks", "45 rules: gradients,\nconvergence, labels,\nranges, crashes …"),
        ("verdict", "publishable,\nwith reservations,\nor do not publish"),
    ]
    figure, axes = plt.subplots(figsize=(13, 2.1))
    axes.set(xlim=(0, 11), ylim=(0, 2))
    axes.axis("off")
    for i, (title, text) in enumerate(boxes):
        left = 0.05 + 2.2 * i
        color = RUST if title == "verdict" else TEAL
        axes.add_patch(
            FancyBboxPatch(
                (left, 0.15),
                1.85,
                1.7,
                boxstyle="round,pad=0.02",
                fill=False,
                edgecolor=color,
                linewidth=1.6,
            )
        )
        axes.text(left + 0.92, 1.52, title, ha="center", weight="bold", color=color, fontsize=12)
        axes.text(left + 0.92, 0.78, text, ha="center", va="center", fontsize=8.5)
        if i:
            axes.annotate(
                "",
                (left - 0.02, 1),
                (left - 0.33, 1),
                arrowprops={"arrowstyle": "->", "linewidth": 1.6},
            )
    save(figure, "verdict")


PICTURES = {
    "two-ways": two_ways,
    "digits": digits,
    "wrong-numbers": wrong_numbers,
    "adaptive": adaptive,
    "oracles": oracles,
    "verdict": verdict,
}

if __name__ == "__main__":
    mpl.use("Agg")
    with mpl.rc_context(STYLE):
        for name in sys.argv[1:] or PICTURES:
            PICTURES[name]()
