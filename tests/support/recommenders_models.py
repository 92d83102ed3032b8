"""Models of `ssept_ext.recommenders` on a small data set."""

from support.factories import tiny_model

from ssept_ext import WarpSampler


def sampler(dataset, **arguments):
    sizes = {"batch_size": 4, "maxlen": 6, "seed": 1} | arguments
    return WarpSampler(dataset.user_train, dataset.usernum, dataset.itemnum, **sizes)


def model_of(kind, dataset, **changes):
    return tiny_model(kind, item_num=dataset.itemnum, user_num=dataset.usernum, **changes)


def train(model, dataset, **arguments):
    with sampler(dataset) as batches:
        options = {"num_epochs": 1, "batch_size": 6, "verbose": False}
        return model.train_model(dataset, batches, **options | arguments)
