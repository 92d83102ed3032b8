"""A script of a user of recommenders, who has not heard of this package: only the package's name is a parameter.

`python script.py recommenders.models.sasrec golden.json` wrote golden.json, with recommenders' torch port. The packages
draw different random numbers, so parameters, batches and candidates are the script's own, and there is no dropout.
"""

import importlib
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

NUM_USERS, NUM_ITEMS, MAXLEN, BATCH_SIZE = 24, 30, 6, 8


class InProcessSampler:
    """Batches like those of WarpSampler, without processes."""

    def __init__(self, user_train, seed):
        self.histories = {user: items for user, items in user_train.items() if len(items) > 1}
        self.random = np.random.RandomState(seed)

    def one(self):
        user = int(self.random.choice(sorted(self.histories)))
        items = self.histories[user][-MAXLEN - 1 :]
        unseen = sorted(set(range(1, NUM_ITEMS + 1)) - set(self.histories[user]))
        rows = items[:-1], items[1:], self.random.choice(unseen, len(items) - 1)
        return user, *(np.array([0] * (MAXLEN - len(row)) + list(row), np.int32) for row in rows)

    def next_batch(self):
        return zip(*[self.one() for _ in range(BATCH_SIZE)], strict=True)

    def close(self):
        pass


def write_events(path):
    random = np.random.RandomState(0)
    lines = []
    for user in range(1, NUM_USERS + 1):
        items = random.permutation(NUM_ITEMS)[: random.randint(2, 12)] + 1
        lines += [f"{user}\t{item}\t{1000 - when}" for when, item in enumerate(items)]
    random.shuffle(lines)
    path.write_text("\n".join(lines) + "\n")


def set_parameters(model):
    """Random ones, and none of those layer norms that the port has and does not use."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm1" not in name and "layernorm2" not in name:
                random = np.random.RandomState(zlib.crc32(name.encode()))
                values = torch.from_numpy(0.3 * random.randn(parameter.numel()))
                parameter.copy_(values.view(parameter.shape))


def run(package, folder):
    model, ssept, sampler, util = (
        importlib.import_module(f"{package}.{name}")
        for name in ("model", "ssept", "sampler", "util")
    )
    data, numbers = split_events(util, folder)
    numbers["batch"] = shapes_of_a_batch(sampler, data)
    batches = InProcessSampler(data.user_train, seed=1)
    of_ssept, ssept_model = train_ssept(ssept, data, batches)
    padded, inputs = inputs_of_three_users(model, data)
    scores = {"scores": ssept_model.predict(inputs).tolist()}
    of_sasrec = train_sasrec(model, data, batches, inputs)
    return json.loads(json.dumps(numbers | of_ssept | padded | scores | of_sasrec))


def split_events(util, folder):
    """The data set and its parts."""
    path = Path(folder) / "events.txt"
    write_events(path)
    data = util.SASRecDataSet(filename=str(path), col_sep="\t")
    numbers = {
        "stats": data.split(valid_size=2, test_size=1, min_interactions=5, verbose=True),
        "with_time": data.with_time,
        "parts": [
            {user: part[user] for user in sorted(part)}
            for part in (data.User, data.user_train, data.user_valid, data.user_test)
        ],
        "unknown user": data.User[999],
    }
    del data.User[999]
    return data, numbers


def shapes_of_a_batch(sampler, data):
    warp = sampler.WarpSampler(
        data.user_train,
        data.usernum,
        data.itemnum,
        batch_size=BATCH_SIZE,
        maxlen=MAXLEN,
        n_workers=2,
    )
    users, seq, pos, neg = warp.next_batch()
    warp.close()
    return [len(users), np.shape(seq), np.shape(pos), np.shape(neg)]


def train_ssept(ssept, data, batches):
    """A subclass with a loss of its own, by `train_model` and then by hand."""

    class Confident(ssept.SSEPT):
        """Also penalises large logits."""

        calls = 0

        def loss_function(self, pos_logits, neg_logits, istarget):
            self.calls += 1
            loss = super().loss_function(pos_logits, neg_logits, istarget)
            return loss + 0.01 * (pos_logits[:, 0] ** 2 * istarget).sum()

    model = Confident(
        item_num=data.itemnum,
        user_num=data.usernum,
        seq_max_len=MAXLEN,
        num_blocks=2,
        embedding_dim=8,
        user_embedding_dim=4,
        item_embedding_dim=8,
        attention_dim=8,
        attention_num_heads=2,
        conv_dims=[10, 12],
        dropout_rate=0.0,
        l2_reg=0.0,
        num_neg_test=9,
    ).double()
    set_parameters(model)
    names = (
        "item_num user_num seq_max_len num_blocks embedding_dim user_embedding_dim item_embedding_dim hidden_units "
        "attention_dim attention_num_heads conv_dims dropout_rate l2_reg num_neg_test"
    )
    numbers = {"attributes": {name: getattr(model, name) for name in names.split()}}
    model.num_neg_test = 5
    numbers["changed"] = model.num_neg_test

    history = model.train_model(
        data, batches, num_epochs=3, batch_size=BATCH_SIZE, learning_rate=0.01, verbose=True
    )
    numbers["loss of train_model"] = [float(loss) for loss in history["loss"]]
    numbers["calls"] = model.calls
    numbers["loss of a loop"], numbers["gradient of a loop"] = train_by_hand(model, batches)
    return numbers, model


def inputs_of_three_users(model_module, data):
    """Their padded sequences, and what `predict` takes to score all items."""
    rows = [data.User[user][:-1] for user in (1, 2, 3)]
    padded = model_module.pad_sequences(rows, maxlen=MAXLEN, padding="pre", truncating="pre")
    behind = model_module.pad_sequences(rows, maxlen=4, padding="post", truncating="post", value=7)
    candidates = np.arange(1, NUM_ITEMS + 1)[None].repeat(3, 0)
    inputs = {"user": np.array([[1], [2], [3]]), "input_seq": padded, "candidate": candidates}
    return {"padded": padded.tolist(), "padded behind": behind.tolist()}, inputs


def train_sasrec(model_module, data, batches, inputs):
    sasrec = model_module.SASREC(
        item_num=data.itemnum,
        user_num=data.usernum,  # which it ignores
        seq_max_len=MAXLEN,
        embedding_dim=8,
        attention_dim=8,
        conv_dims=[8, 8],
        num_neg_test=9,
        dropout_rate=0.0,
    ).double()
    set_parameters(sasrec)
    numbers = {"no epochs": sasrec.train_model(data, batches, num_epochs=0)["loss"]}
    history = sasrec.train_model(data, batches, num_epochs=1, batch_size=BATCH_SIZE, val_epoch=1)
    numbers["loss of SASREC"] = [float(loss) for loss in history["loss"]]
    numbers["validations"] = [len(history["val_ndcg"]), len(history["val_hr"])]
    numbers["scores of SASREC"] = sasrec.predict(inputs).tolist()
    numbers["metrics"] = [0 <= float(value) <= 1 for value in sasrec.evaluate(data, seed=1)]
    return numbers


def train_by_hand(model, batches):
    """Steps through `forward`, and each time the same logits through `embedding` and `encoder`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-7)
    losses = []
    model.train()
    for _ in range(5):
        inputs, _ = model.create_combined_dataset(*batches.next_batch())
        x = {name: torch.LongTensor(values) for name, values in inputs.items()}
        optimizer.zero_grad()
        loss = model.loss_function(*model(x, training=True))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

        mask = (x["input_seq"] != 0).to(torch.float64).unsqueeze(-1)
        items, columns = model.embedding(x["input_seq"])
        user = model.user_embedding_layer(x["users"]) * model.user_embedding_dim**0.5
        user = user.expand(-1, MAXLEN, -1)
        hidden = model.dropout_layer(torch.cat([items, user], 2) + columns) * mask
        hidden = model.layer_normalization(model.encoder(hidden, True, mask))
        logits = [
            (torch.cat([model.item_embedding_layer(x[name]), user], 2) * hidden).sum(-1).view(-1, 1)
            for name in ("positive", "negative")
        ]
        optimizer.zero_grad()
        loss = model.loss_function(*logits, (x["positive"] != 0).double().view(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.item_embedding_layer.weight.grad.norm(dim=1).tolist()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        numbers = run(sys.argv[1], folder)
    Path(sys.argv[2]).write_text(json.dumps(numbers, indent=1) + "\n")
