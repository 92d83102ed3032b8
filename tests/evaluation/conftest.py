import numpy as np
import pytest
from support.evaluation import NUM_ITEMS, make_dataset


@pytest.fixture
def dataset():
    """60 users (of 1..61) with 1 to 12 events."""
    rng = np.random.default_rng(0)
    return make_dataset(
        {
            user: rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 13)).tolist()
            for user in range(1, 62)
            if user != 7
        }
    )
