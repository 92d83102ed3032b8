"""Folders for the Triton Inference Server, which the tests do not have: its description fits the file beside it."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.factories import perturbed
from support.raw_ids import SIZES, interactions, rows

from ssept_ext import SSEPT
from ssept_ext.serving.triton import MAX_BATCH_SIZE, export_triton

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

TYPES = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)", "TYPE_FP64": "tensor(double)"}

SCHEMA = {
    "Shape": ["int64* shape"],
    "Tensor": ["string name", "string data_type", "int64* dims", "Shape reshape"],
    "Batching": ["int64* preferred_batch_size", "int64 max_queue_delay_microseconds"],
    "ModelConfig": [
        *("string name", "string backend", "int64 max_batch_size"),
        *("Tensor* input", "Tensor* output", "Batching dynamic_batching"),
    ],
}
"""What the exported files use of Triton's model_config.proto. Its types of tensors, an enumeration, are names here."""


def read_config(path):
    """Parse a config.pbtxt, as text that Triton's parser takes."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="test")
    for message, fields in SCHEMA.items():
        described = file.message_type.add(name=message)
        for number, (kind, name) in enumerate(map(str.split, fields), 1):
            field = described.field.add(name=name, number=number, label=of.LABEL_OPTIONAL)
            if kind.endswith("*"):
                field.label = of.LABEL_REPEATED
            match kind.rstrip("*"):
                case "string":
                    field.type = of.TYPE_STRING
                case "int64":
                    field.type = of.TYPE_INT64
                case other:
                    field.type, field.type_name = of.TYPE_MESSAGE, f".test.{other}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.ModelConfig"))()
    # An enumeration's value has no quotes, as a string has.
    text = path.read_text()
    for name in TYPES:
        text = text.replace(name, f'"{name}"')
    return text_format.Parse(text, config)


def ask(session, config, user, items, k):
    """What Triton gives to the runtime for one request, and of its answer to the client."""
    given = {"user": [user], "input_seq": items, "k": [k]}
    inputs = {}
    for tensor in config.input:
        request = np.array([given[tensor.name]])  # with the batch
        assert list(request.shape[1:]) == list(tensor.dims)
        shape = tensor.reshape.shape if tensor.HasField("reshape") else request.shape[1:]
        inputs[tensor.name] = request.reshape(1, *shape)
    return dict(zip((x.name for x in config.output), session.run(None, inputs), strict=True))


@pytest.fixture(scope="module")
def model():
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)
    torch.manual_seed(0)
    return perturbed(model)


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory):
    """With one version."""
    folder = tmp_path_factory.mktemp("triton")
    assert export_triton(model, folder, "shop") == folder / "shop" / "1"
    return folder


@pytest.fixture(scope="module")
def session(repository):
    return onnxruntime.InferenceSession(repository / "shop" / "1" / "model.onnx")


def test_a_repository_has_the_files_that_the_documentation_names(repository):
    files = sorted(str(x.relative_to(repository)) for x in repository.rglob("*") if x.is_file())
    assert files == ["shop/1/ids.json", "shop/1/model.onnx", "shop/config.pbtxt"]


def test_the_description_fits_the_inputs_and_outputs_of_the_onnx_file(repository, session):
    config = read_config(repository / "shop" / "config.pbtxt")

    assert (config.name, config.backend) == ("shop", "onnxruntime")
    assert config.max_batch_size == MAX_BATCH_SIZE
    assert config.HasField("dynamic_batching")
    for described, actual in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [x.name for x in described] == [x.name for x in actual]
        assert [TYPES[x.data_type] for x in described] == [x.type for x in actual]
        for x, y in zip(described, actual, strict=True):
            assert isinstance(y.shape[0], str)  # the batch, of any size
            of_one = [-1 if isinstance(size, str) else size for size in y.shape[1:]]
            assert list(x.reshape.shape if x.HasField("reshape") else x.dims) == of_one


@pytest.mark.parametrize("user", ["anna", "nobody"])
def test_the_answer_in_raw_ids_is_that_of_recommend(model, repository, session, user):
    ids = json.loads((repository / "shop" / "1" / "ids.json").read_text())
    users, items = ids["users"]["ids"], ids["items"]["ids"]
    history = ["i3", "i1", "i4"]
    seq = [0] * (model.seq_max_len - 3) + [items.index(item) + 1 for item in history]
    index = users.index(user) + 1 if user in users else 0

    answer = ask(session, read_config(repository / "shop" / "config.pbtxt"), index, seq, 4)

    expected = [(item, score) for _, item, score, _ in rows(model.recommend({user: history}, k=4))]
    assert [items[number - 1] for number in answer["item"][0]] == [item for item, _ in expected]
    np.testing.assert_allclose(answer["score"][0], [score for _, score in expected], 1e-4, 1e-4)


@pytest.fixture
def _exported_before(repository, monkeypatch):
    """Exports take no time: they copy the file of the version in `repository`."""
    file = repository / "shop" / "1" / "model.onnx"
    monkeypatch.setattr(
        "ssept_ext.serving.triton.export_onnx", lambda model, path, top_k: shutil.copy(file, path)
    )


@pytest.mark.usefixtures("_exported_before")
def test_a_further_export_is_the_next_version_and_keeps_the_edited_description(
    model, repository, tmp_path
):
    folder = tmp_path / "shop"
    (folder / "9").mkdir(parents=True)
    text = (repository / "shop" / "config.pbtxt").read_text() + "instance_group [{ count: 2 }]\n"
    (folder / "config.pbtxt").write_text(text)

    assert export_triton(model, tmp_path, "shop").name == "10"

    assert (folder / "config.pbtxt").read_text() == text
    assert sorted(path.name for path in folder.iterdir()) == ["10", "9", "config.pbtxt"]
    assert sorted(path.name for path in (folder / "10").iterdir()) == ["ids.json", "model.onnx"]


@pytest.mark.usefixtures("_exported_before")
def test_a_model_with_other_inputs_is_no_further_version(model, repository, tmp_path):
    (tmp_path / "shop").mkdir()
    text = (repository / "shop" / "config.pbtxt").read_text()
    assert text.count("dims: [4]") == 1  # input_seq
    (tmp_path / "shop" / "config.pbtxt").write_text(text.replace("dims: [4]", "dims: [5]"))

    with pytest.raises(ValueError, match=r"shop/config\.pbtxt describes other inputs or outputs"):
        export_triton(model, tmp_path, "shop")

    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["config.pbtxt"]


@pytest.mark.usefixtures("_exported_before")
def test_fewer_requests_are_answered_together_if_there_are_many_items(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ssept_ext.serving.triton.SCORES_AT_A_TIME", 100)

    export_triton(model, tmp_path)

    assert read_config(tmp_path / "ssept" / "config.pbtxt").max_batch_size == 100 // 13


@pytest.mark.parametrize("name", ["", "../shop", ".shop", "a b", "a/b", 'a"b', "a\n"])
def test_names_that_are_none_of_a_folder_are_refused(model, name, tmp_path):
    with pytest.raises(ValueError, match="name must consist of letters"):
        export_triton(model, tmp_path, name)
    assert not list(tmp_path.iterdir())
