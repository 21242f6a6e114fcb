import pytest

from asarm.filling.infiller import Infiller


@pytest.fixture(scope="session")
def infiller(tiny_folder) -> Infiller:
    """A tiny random model, whose gaps have known lengths."""
    return Infiller.from_pretrained(tiny_folder, gap_tokens=4, device="cpu")


@pytest.fixture(scope="session")
def ending(ending_folder) -> Infiller:
    """The same, of a model that ends gaps."""
    return Infiller.from_pretrained(ending_folder, gap_tokens=6, device="cpu")
