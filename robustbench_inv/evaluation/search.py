"""One search of an attack on a batch: what it proposes, and what it took to find it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, brief_of
from robustbench_inv.errors import UsageError
from robustbench_inv.evaluation.beyond import move_beyond
from robustbench_inv.evaluation.metering import Meter, draws_anew
from robustbench_inv.evaluation.transfer import lead_off
from robustbench_inv.evaluation.verdict import checked_shape
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.randomness import Noise
from robustbench_inv.results.record import Status
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Found", "Search", "Searcher", "out_of_memory"]


@dataclass(frozen=True)
class Found:
    """What a search came to, for n samples.

    Args:
        proposals: (n, …) what the attack proposes, the clean inputs if it crashed.
        met: (n,) did a query show a success?
        nearest: (n, …) the nearest of these, where there was one.
        forward_passes: (n,) int64 inputs that the model was asked about.
        backward_passes: (n,) int64 gradients that were taken.
        zero_gradient: (n,) were gradients taken, of which every one was zero or not finite?
        marks: why there is no proposal, by position.
        crash: what the attack raised, one line; None if it did not.
        measured: numbers of each sample, (n,), by name.
    """

    proposals: Tensor
    met: Tensor
    nearest: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    zero_gradient: Tensor
    marks: dict[int, Status]
    crash: str | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> "Found":
        """Return what the search came to for the samples at (m,) positions."""
        tensors = {
            name: value[rows] for name, value in vars(self).items() if torch.is_tensor(value)
        }
        places = enumerate(rows.tolist())
        marks = {new: self.marks[old] for new, old in places if old in self.marks}
        measured = {name: values[rows] for name, values in self.measured.items()}
        return Found(**tensors, marks=marks, crash=self.crash, measured=measured)

    def proposing(self, proposals: Tensor, *, again: bool) -> "Found":
        """Return the same with other proposals; ``again`` if the search has been charged for already."""
        if not again:
            return replace(self, proposals=proposals)
        none = torch.zeros_like(self.forward_passes)
        return replace(
            self,
            proposals=proposals,
            forward_passes=none,
            backward_passes=none,
            zero_gradient=none.bool(),
        )


Search = Callable[[Batch, Tensor | None, ThreatModel], Found]
"""(n samples, (n, …) inputs to start from or None, one stage of the threat) → what was found."""


@dataclass(frozen=True)
class Searcher:
    """An attack, and the model that it searches on.

    Args:
        attack: the attack.
        classifier: what answers it: a copy of the model or, under a transfer threat, of the substitute.
        guide: what gives the gradients in place of the classifier; None for itself.
        seed: of the random numbers.
        steady: does the classifier give the same answer twice, apart from draws that it declares?
    """

    attack: Attack
    classifier: Classifier
    guide: Classifier | None
    seed: int
    steady: bool = True

    def __call__(self, batch: Batch, start: Tensor | None, stage: ThreatModel) -> Found:
        """Search; an attack that raises proposes nothing.

        Raises:
            UsageError: if the attack says that it cannot be used so.
        """
        # draws of its own for each eps: an image that only looked broken must not look so again
        noise = Noise(self.seed, batch.ids, f"attack/{stage.budget}")
        keeps_best = self.attack.kind != "invariance" and not stage.transfers
        meter = Meter(self.classifier, batch, stage, noise, keeps_best, self.guide, self.steady)
        # indexed, and so copied: an attack may write into its own batch
        own = replace(batch, start=start)[torch.arange(len(batch), device=batch.ids.device)]
        proposals, crash = self._propose(meter, own)
        return Found(
            proposals=proposals,
            met=meter.found,
            nearest=meter.best if keeps_best else proposals,
            forward_passes=meter.forward_passes,
            backward_passes=meter.backward_passes,
            zero_gradient=meter.zero_gradient,
            marks=meter.marks,
            crash=crash,
            measured=meter.measured,
        )

    @property
    def brief(self) -> "Searcher | None":
        """The search in brief, with which a sweep goes down from its largest eps.

        None if the attack has no brief form, and where an answer is a matter of luck, which may be better at a smaller eps.
        """
        attack = brief_of(self.attack)
        if attack is None or not self.steady or draws_anew(self.classifier):
            return None
        return replace(self, attack=attack)

    def _propose(self, meter: Meter, own: Batch) -> tuple[Tensor, str | None]:
        try:
            found = self.attack.run(meter, own, meter.threat, meter.noise)
            return self._finished(meter, checked_shape(found, meter.batch)), None
        except UsageError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            return meter.batch.images, f"{type(error).__name__}: {error}".splitlines()[0]

    def _finished(self, meter: Meter, proposals: Tensor) -> Tensor:
        if meter.threat.transfers:
            return lead_off(meter, proposals)
        sure = meter.conclusive or self.attack.kind != "minimal"
        return proposals if sure else move_beyond(meter, proposals)


def out_of_memory(error: BaseException) -> bool:
    """Is this the error of a device, or of the CPU's allocator, that has no memory left?"""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text and "memory" in text
    )
