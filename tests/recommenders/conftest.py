import pytest

from ssept_ext.data.synthetic import synthetic


@pytest.fixture
def dataset():
    return synthetic(num_users=12, min_events=5, max_events=9, num_clusters=2, num_tastes=2)
