"""What requests and answers of the server hold. These classes are also its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

MAX_K = 1000
MAX_HISTORY = 10_000
MAX_CANDIDATES = 100_000

Id = StrictInt | StrictStr
"""A raw id: an integer, a string, or a UUID as a string, as in the data that the model was trained on."""
Time = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | datetime
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_K)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendRequest(_Request):
    """Whom to recommend to, from what, and how many items."""

    user: Id | None = Field(
        None, description="None, or an id that the model does not know, is an unknown user"
    )
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = Field(
        None, description="the user's items, oldest first, instead of those that the model stores"
    )
    history_times: Annotated[list[Time], Field(max_length=MAX_HISTORY)] | None = Field(
        None, description="their times, for a model with a time bias, in the unit of the data"
    )
    candidates: Annotated[list[Id], Field(min_length=1, max_length=MAX_CANDIDATES)] | None = Field(
        None, description="the items to choose from; all by default"
    )
    k: Count = Field(10, description="number of items; there may be fewer to recommend")
    exclude_seen: StrictBool = Field(True, description="leave out the items of the history")
    at: Time | None = Field(
        None, description="when the next event will be, for a model with a time bias"
    )


class SimilarRequest(_Request):
    """The item to find similar ones to, and how many."""

    item: Id
    k: Count = 10


class ScoredItem(BaseModel):
    """An item and its score: none for a popular item, which a user without events gets."""

    item: int | str
    score: float | None


class RecommendAnswer(BaseModel):
    """The best items, best first."""

    items: list[ScoredItem]
    known_user: bool
    unknown_items: int = Field(description="items of the request that the model does not know")


class SimilarAnswer(BaseModel):
    """The most similar items by cosine, most similar first."""

    items: list[ScoredItem]


class ModelInfo(BaseModel):
    """The model that answers."""

    kind: str
    num_items: int
    num_users: int | None
    loaded_at: datetime


class Health(BaseModel):
    """Whether the server answers from what its folder holds."""

    status: str = Field(
        description='"ok", or "stale" where the folder has changed and cannot be loaded'
    )
    error: str | None
    model: ModelInfo


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers to OpenAPI."""
    return {code: {"model": Problem} for code in codes}
