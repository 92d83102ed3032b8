import os

import pytest
import torch
from implementations import implementation as implementation_named


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def implementation(request):
    return implementation_named(request.param)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """Splitting work over threads is tested on machines of any size."""
    if "SSEPT_EMULATION_MODE" not in os.environ:
        torch.set_num_threads(2)
