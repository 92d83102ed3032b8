import pytest
import torch
from support.raw_ids import SIZES, interactions

from ssept_ext import SASREC, SSEPT


@pytest.fixture(params=[SSEPT, SASREC], scope="module")
def model(request):
    """Trained for one step, then given parameters that tell items apart."""
    model = request.param.fit(interactions(), **SIZES, num_epochs=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.double()
