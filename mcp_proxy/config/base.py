"""What all models of the configuration have in common.

Rules of this file: every model forbids unknown keys and cannot be changed; a default is written
the way a user would write it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.fields import FieldInfo

from mcp_proxy.config import files


def written(text: str, key: str | None = None) -> Any:
    """A default in the words of the file; validated like everything else. ``key``: how the key is
    written when it is a reserved word of Python."""
    return Field(default=text, validation_alias=key, serialization_alias=key)


def key_of(name: str, field: FieldInfo) -> str:
    """How the attribute ``name`` is written in a file."""
    return field.serialization_alias or name


class Model(BaseModel):
    """Keys with values. In Python a key that is a reserved word has a ``_`` behind it; files, the
    schema and dumps have the word itself."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


def one_of(*keys: str) -> ConfigDict:
    """Of a model that has exactly one of ``keys``: for the schema, the check itself is elsewhere."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in keys]})


class FileModel(Model):
    """Names files. Two are equal when the files held the same as well, at the time of reading: the name
    of a certificate stays when it is renewed."""

    _digests: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _remember(self) -> Self:
        for name, value in self:
            if isinstance(value, Path):
                self._digests[name] = files.digest(value)
        return self

    def digest(self, name: str) -> str:
        """Of what the file under the key ``name`` held; empty when the key has none."""
        return self._digests.get(name, "")
