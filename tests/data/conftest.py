import pytest

from ssept_ext import Interactions


@pytest.fixture
def csv(tmp_path):
    def write_and_read(content, name="log.csv", **arguments):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Interactions.from_csv(path, **arguments)

    return write_and_read
