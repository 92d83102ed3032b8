"""Models behind the routes of the server, in this process. Needs the extra `serve`."""

from contextlib import contextmanager

import torch
from fastapi.testclient import TestClient
from support.raw_ids import HISTORIES, SIZES, interactions

from ssept_ext import SSEPT
from ssept_ext.service.app import ServiceSettings, make_app


def fitted(histories=HISTORIES):
    """Trained for one step, then given parameters that tell items apart."""
    torch.manual_seed(0)
    model = SSEPT.fit(interactions(histories), **SIZES, num_epochs=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@contextmanager
def served(model, folder):
    model.save_pretrained(folder)
    with TestClient(make_app(ServiceSettings(str(folder), watch_seconds=0))) as client:
        yield client
