"""Metameric sampling: the logits of an input joined with the nuisances of another input, and decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.invariance.donors import assign_donors, check_rule
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.protocol import InvertibleWithSplitCode
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, flatten, logit_change, norm, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FINISHES", "STAGES", "Metamer"]

STAGES = ("raw", "clip", "round")
"""Stages of a metamer: as decoded, clipped to the model's bounds, and rounded to 256 grey levels."""

COLUMNS = {"raw": "raw", "clip": "clipped", "round": "rounded"}
"""Names of the stages in logged values."""

FINISHES = STAGES[1:]
"""The stages that an attack can return; a raw metamer may lie outside the bounds."""


@dataclass(frozen=True)
class Metamer:
    """x_met = F⁻¹(z_s of x, (1 − mix) z_n of x + mix z_n of a donor), clipped and rounded; no optimization.

    With an exact inverse the raw metamer has the logits of x. It may lie outside the bounds, and clipping may change its
    logits. ``projections`` alternates clipping and decoding with the logits of x, which converges to an input in the
    box with these logits, if there is one.

    Logged for each sample and stage (``raw``, ``clipped``, ``rounded``): ``…_same_prediction``, whether it has the
    prediction of x, and ``…_logit_distance``, the largest change of a logit. Also ``reconstruction_error``,
    |F⁻¹(F(x)) − x|_∞, ``reencoding_error``, |semantic part of F(raw) − z_s|_∞ (check C32), ``donor`` and
    ``donor_label``. Encoding and decoding are not counted as passes; the three queries of the stages are.

    Args:
        donor: rule for donors, one of ``donors.RULES``.
        mix: share of the donor's nuisances, above 0, at most 1.
        projections: number of times that the metamer is clipped and decoded with the logits of x, >= 0; 0 in the paper.
        finish: the returned stage: ``round`` (256 grey levels) or ``clip``.

    References:
        Jacobsen et al., Excessive invariance causes adversarial vulnerability, ICLR 2019, section 2.2 and figure 6;
        Behrmann, thesis, definition 6.8.
    """

    donor: str = "other-class"
    mix: float = 1.0
    projections: int = 0
    finish: str = "round"

    kind: ClassVar[Kind] = "invariance"
    runs_once: ClassVar[bool] = True
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        check_rule(self.donor)
        if not 0 < self.mix <= 1:
            raise BadParameter("unusable mix", got=self.mix, expected="above 0, at most 1")
        check_least(self, projections=0)
        if self.finish not in FINISHES:
            raise BadParameter(
                "unusable finish", got=self.finish, expected="one of " + ", ".join(FINISHES)
            )

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model that is no bijection with a split code."""
        _require_bijective(model)

    @torch.no_grad()
    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        network = _require_bijective(model.model)
        donors, found = assign_donors(model, batch, self.donor, rng)
        raw = self._sample(model, network, batch.images, donors)
        stages = dict(_postprocessed(raw, model.bounds))
        _log_stages(model, batch.images, stages)
        return where_rows(found, stages[self.finish], batch.images)

    def _sample(
        self, model: Queries, network: InvertibleWithSplitCode, images: Tensor, donors: Tensor
    ) -> Tensor:
        """Return raw metamers, and log the error of the inverse."""
        code = network.encode(images)
        semantic, nuisance = network.split(code)
        foreign = network.split(network.encode(donors))[1]
        raw = network.decode(network.join(semantic, torch.lerp(nuisance, foreign, self.mix)))
        for _ in range(self.projections):
            inside = network.split(network.encode(raw.clamp(*model.bounds)))[1]
            raw = network.decode(network.join(semantic, inside))
        again = network.split(network.encode(raw))[0]
        model.log("reconstruction_error", norm(network.decode(code) - images, "linf"))
        model.log("reencoding_error", norm(again - semantic, "linf"))
        return raw


def _postprocessed(raw: Tensor, bounds: tuple[float, float]) -> Iterator[tuple[str, Tensor]]:
    low, high = bounds
    clipped = raw.clamp(low, high)
    yield "raw", raw
    yield "clip", clipped
    levels = ((clipped - low) * (255 / (high - low))).round()
    yield "round", (levels * ((high - low) / 255) + low).clamp(low, high)


def _log_stages(model: Queries, images: Tensor, stages: dict[str, Tensor]) -> None:
    clean = model(images)
    for stage, candidates in stages.items():
        output = model(candidates)
        moved = logit_change(output.logits, clean.logits)
        usable = moved.isfinite() & flatten(candidates).isfinite().all(1)
        kept = usable & (output.decision == clean.decision)
        model.log(f"{COLUMNS[stage]}_same_prediction", kept.long())
        model.log(f"{COLUMNS[stage]}_logit_distance", moved)


def _require_bijective(model: object) -> InvertibleWithSplitCode:
    """Return a model that is a bijection with a semantic and a nuisance part.

    Raises:
        CapabilityMismatch: if it is no such model.
    """
    if not isinstance(model, InvertibleWithSplitCode):
        raise CapabilityMismatch(
            "metamers need an invertible model whose code has a semantic part",
            got=type(model).__name__,
            expected="a model with encode, decode, split and join, such as a fiRevNet",
        )
    return model
