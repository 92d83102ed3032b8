import os
import signal

import hypothesis
import pytest
import torch
from support.implementations import implementation as implementation_named

# The same examples in every run, however slow or busy the machine is.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
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


@pytest.fixture(autouse=True)
def _new_tensors_are_nan():
    """Where kernels run under the emulation's checkers, what an op forgets to write cannot look right by chance."""
    if "SSEPT_EMULATION_MODE" not in os.environ:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty makes
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """Splitting work over threads is tested on machines of any size."""
    if "SSEPT_EMULATION_MODE" not in os.environ:
        torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """Shells start background jobs with SIGINT ignored, which training respects."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def _one_thread():
    """Threads only cost time on models as small as the tests', most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of text or bytes and returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file
