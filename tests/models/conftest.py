"""Builds the model of a card without the catalogue."""

import pytest

from robustbench_inv.catalogue.references import import_object
from robustbench_inv.models.wrapping import build_model


@pytest.fixture(scope="session")
def build_card():
    """Return a function that builds the model of a card with some parameters."""

    def build(card, parameters):
        return build_model(import_object(card.implementation), card, None, parameters)

    return build
