"""What all records share: frozen, no unknown keys, written once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record; unknown keys are an error, so that a misspelt key is never ignored. NaN is not stored
    as null behind our back: "undefined" is None with a reason.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )
