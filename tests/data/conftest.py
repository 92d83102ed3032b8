import pytest

from ssept_ext import Interactions
from ssept_ext.data.sources import delimited


@pytest.fixture
def csv(tmp_path):
    def write_and_read(content, name="log.csv", **arguments):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Interactions.from_csv(path, **arguments)

    return write_and_read


@pytest.fixture(params=[None, 30], ids=["one block", "many blocks"])
def _in_blocks(request, monkeypatch):
    """Read text in blocks of so many bytes: of one line or two each, or of a part of one."""
    if request.param is not None:
        monkeypatch.setattr(delimited, "_READ", request.param)
