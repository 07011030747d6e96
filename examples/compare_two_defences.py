"""A notebook in plain Python: is this defence better, and can the number be trusted?

Editors such as VS Code, Spyder and PyCharm show each ``# %%`` as a cell. ``python examples/compare_two_defences.py``
runs all of it, in about a minute. Results are written to runs/example, and a second run finds them there.
"""

# %% The data: 200 digits that come with the package. Yours are two arrays as well.
from torch import Tensor, nn

import robustbench_inv as rbi

SAMPLES = 100
digits = rbi.load_dataset("mnist5k")
x, y = digits.batch(range(0, 5000, 25))
print(x.shape, y.bincount())


# %% Two models: a network, and the same network behind a "defence" that rounds each pixel to 16 grey levels.
class Rounded(nn.Module):
    bounds = (0.0, 1.0)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((15 * images).round() / 15)


network = rbi.load_model("mnist-lenet5").classifier.module
network.bounds = (0.0, 1.0)
models = {"plain": network, "rounded": Rounded(network)}

# %% Robust accuracy under PGD. The defence seems to work wonders.
common = {"x": x, "y": y, "threat": "linf=0.1", "samples": SAMPLES, "out": "runs/example"}
run = rbi.evaluate(models, attack="pgd", keep_images=True, progress=False, **common)
print(run.table())

# %% But the verdict says why not to believe it: rounding has no gradient.
for conclusion in run.conclusions:
    print(conclusion.model, "→", conclusion.verdict)
for check in run.checks:
    if check.verdict == "FAIL":
        print(check.id, check.subject, check.evidence, sep=": ")

# %% An adaptive attack takes the gradients of the network without rounding, and tests on the defended one.
adaptive = rbi.evaluate(
    {"rounded": models["rounded"]},
    attack="pgd-tuned",
    progress=False,
    **{**common, "threat": "linf=0.1:guide=mnist-lenet5"},
)
print(adaptive.summary()[0].robust_accuracy)

# %% The images: original and adversarial, as tensors.
found = run.adversarial(model="plain")
print(found.x.shape, "broken:", int(found.broken.sum()))
print("largest change of a pixel:", float((found.x - found.clean).abs().max()))

# %% A report for others: one HTML file.
print(rbi.write_report([run.path], "runs/example/report.html"))
