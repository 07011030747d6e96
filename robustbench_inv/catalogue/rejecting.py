"""Models that reject: ``NAME:reject=SCORE,percentile=P`` wraps what ``NAME`` is with thresholds fitted beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.references import Scalar
from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.identity import digest_file, digest_value

if TYPE_CHECKING:
    from robustbench_inv.catalogue.loaded_model import LoadedModel

__all__ = ["THRESHOLDS", "Rejection", "fitted_digest", "rejecting", "take_rejection"]

THRESHOLDS = "thresholds.safetensors"
"""Name of the file in a model's folder."""

RUN_TIME = ("dtype", "noise", "draws")
"""Parameters of a model that leave its thresholds valid."""


@dataclass(frozen=True)
class Rejection:
    """How a user wants a model to reject.

    Args:
        score: one of ``models.rejection.SCORES``.
        percentile: share of correctly classified training inputs that each class rejects, in per cent.
        thresholds: a file of ``invbench calibrate``; empty for the one in the model's folder.
    """

    score: str = "likelihood"
    percentile: float = 1.0
    thresholds: str = ""


def take_rejection(
    parameters: Mapping[str, Scalar],
) -> tuple[Rejection | None, dict[str, Scalar]]:
    """Return what parameters say of rejection, None if nothing, and the rest of them.

    Raises:
        BadParameter: for a percentile that is no number, or a score or file that is no text.

    Example:
        >>> take_rejection({"reject": "margin", "width": 3})
        (Rejection(score='margin', percentile=1.0, thresholds=''), {'width': 3})
    """
    names = {"reject": "score", "percentile": "percentile", "thresholds": "thresholds"}
    given = {names[key]: value for key, value in parameters.items() if key in names}
    rest = {key: value for key, value in parameters.items() if key not in names}
    if not given:
        return None, rest
    percentile = given.get("percentile", 1.0)
    if isinstance(percentile, bool | str):
        raise BadParameter("unusable percentile", got=percentile, expected="a number, 0 to 20")
    words = {key: value for key, value in given.items() if key != "percentile"}
    if wrong := [value for value in words.values() if not isinstance(value, str)]:
        raise BadParameter("unusable rejection", got=wrong[0], expected="reject=SCORE")
    return Rejection(**words, percentile=float(percentile)), rest  # type: ignore[arg-type]


def rejecting(loaded: "LoadedModel", wanted: Rejection, folder: Path | None) -> "LoadedModel":
    """Return a loaded model that rejects.

    Args:
        loaded: the model itself.
        wanted: score, percentile and file.
        folder: of the model in the catalogue, None for a user's own.

    Raises:
        BadModel: if there are no thresholds, or they were fitted to another model.
        BadParameter: for a score or percentile that there are none for.
    """
    from robustbench_inv.models.rejection import Quantiles, reject

    path = _file(loaded, wanted, folder)
    fitted = Quantiles.load(path)
    if fitted.facts.get("model") != fitted_digest(loaded):
        raise BadModel(
            f"{path} was fitted to another model than {loaded.name}",
            got=str(fitted.facts.get("model"))[:12],
            expected=fitted_digest(loaded)[:12],
            remedy=_remedy(loaded),
        )
    limits = fitted.thresholds(wanted.score, wanted.percentile)
    frozen = {"score": wanted.score, "percentile": wanted.percentile, "values": limits.tolist()}
    digest = digest_value(frozen)
    about = {
        **frozen,
        "digest": digest,
        "file_sha256": digest_file(path),
        "fitted": dict(fitted.facts),
    }
    return replace(
        loaded,
        digest=digest_value({"model": loaded.digest, "rejection": digest}),
        card={**loaded.card, "rejection": about},
        classifier=reject(loaded.classifier, wanted.score, limits),
    )


def fitted_digest(loaded: "LoadedModel") -> str:
    """Return the digest of what thresholds are fitted to: all that the model is but for its RUN_TIME parameters."""
    given: Mapping[str, Any] = loaded.identity.get("parameters", {})
    kept = {key: value for key, value in given.items() if key not in RUN_TIME}
    return digest_value({**loaded.identity, "parameters": kept})


def _file(loaded: "LoadedModel", wanted: Rejection, folder: Path | None) -> Path:
    if wanted.thresholds:
        return Path(wanted.thresholds).expanduser()
    if folder is None or not (folder / THRESHOLDS).is_file():
        raise BadModel(f"{loaded.name} has no thresholds to reject by", remedy=_remedy(loaded))
    return folder / THRESHOLDS


def _remedy(loaded: "LoadedModel") -> str:
    return f"fit them: invbench calibrate {loaded.name} --out FILE, and append thresholds=FILE"
