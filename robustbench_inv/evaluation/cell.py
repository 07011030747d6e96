"""A cell: one attack on one model, under one threat, on one data set, with one seed."""

from dataclasses import dataclass

from robustbench_inv.identity import IDENTITY_VERSION, digest_value

__all__ = ["CellSpec"]


@dataclass(frozen=True)
class CellSpec:
    """What determines a record; batch size, device and workers are absent on purpose.

    Args:
        model: digest of name, revision, parameters and weights, of a user's model that of its code.
        attack: digest of preset, revision, parameters and goal, of a user's attack that of its code.
        threat: digest of norm, eps, goal and access.
        dataset: digest of the data's bytes, and of the code of a user's own data set.
        seed: the seed of all random numbers.
    """

    model: str
    attack: str
    threat: str
    dataset: str
    seed: int

    @property
    def digest(self) -> str:
        """Name of the cell's folder: 32 hexadecimal digits."""
        return digest_value({"version": IDENTITY_VERSION, **vars(self)})[:32]
