"""One thread, because other work shares the machine; an empty Pyro parameter store for every test."""

from collections.abc import Iterator

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def empty_param_store() -> Iterator[None]:
    """Clear Pyro's global parameters before and after a test."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
