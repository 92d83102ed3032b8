"""Reading the tensors of a checkpoint, and what their shapes say about the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.utils.tensor_files import map_tensors, opened


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors, on the CPU, and the texts of a file; a ValueError if it is damaged."""
    mapped, header = map_tensors(path)
    # Clone, because a later change of the file must not change them.
    return {name: x.clone() for name, x in mapped.items()}, header


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Read the shapes alone, which takes neither time nor memory; a ValueError if the file is damaged."""
    with opened(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def sizes_of(
    shapes: Mapping[str, Sequence[int]], config_class: type[SASRECConfig]
) -> dict[str, Any]:
    """Infer constructor arguments from the shapes of a model's parameters.

    Raises
    ------
    LookupError, TypeError, ValueError
        If they are not the shapes of such a model.
    """
    items, item_width = shapes["item_embedding_layer.weight"]
    seq_max_len, width = shapes["positional_embedding_layer.weight"]
    inner = shapes["encoder.enc_layers.0.ffn.conv_layer2.weight"][1]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.enc_layers.")}
    sizes = {
        "item_num": items - 1,
        "seq_max_len": seq_max_len,
        "num_blocks": len(blocks),
        "embedding_dim": item_width,
        "conv_dims": (inner, width),
    }
    if "content.features" in shapes:
        sizes["item_feature_dim"] = shapes["content.features"][1]
    if "output_embedding_layer.weight" in shapes:
        sizes["tie_item_embeddings"] = False
    if issubclass(config_class, SSEPTConfig):
        users, user_width = shapes["user_embedding_layer.weight"]
        sizes |= {"user_num": users - 1, "user_embedding_dim": user_width}
    return sizes
