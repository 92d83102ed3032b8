import pytest
from support.ring import ring_dataset


@pytest.fixture
def dataset():
    """12 users with 9 events each in a ring of 30 items."""
    return ring_dataset()
