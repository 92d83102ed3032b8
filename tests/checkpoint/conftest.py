import pytest
from support.checkpoints import make_ssept

from ssept_ext.checkpoint.model import save_checkpoint


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(make_ssept(), tmp_path)
    return tmp_path
