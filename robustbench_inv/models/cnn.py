"""The baseline network of Guess First, and the parts that its variants share."""

from collections import OrderedDict

from torch import Tensor, nn

__all__ = ["FEATURES", "GuessFirstCNN", "convolutions"]

FEATURES = 1600
"""Width of the convolutions' output for a 28×28 input: 64 maps of 5×5."""


def convolutions() -> nn.Sequential:
    """Return the two convolutions: 32 and 64 filters of 4×4, stride 2, batch norm, ReLU.

    Maps (n, 1, 28, 28) to (n, 1600).

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 4, stride=2),
            norm1=nn.BatchNorm2d(32),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 4, stride=2),
            norm2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
        )
    )


class GuessFirstCNN(nn.Module):
    """Baseline CNN: the convolutions, fully connected layers of 512, 256, 128, and one of 10.

    Maps (n, 1, 28, 28) in [0, 1] to (n, 10) logits.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """

    bounds = (0.0, 1.0)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = convolutions()
        self.head = nn.Sequential(
            nn.Linear(FEATURES, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
