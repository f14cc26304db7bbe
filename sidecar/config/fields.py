"""What the models of all sections are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

HOST_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")


class Model(BaseModel):
    """A section: unknown keys are errors, values do not change, and no error message repeats a value on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)


def conflict(problems: Iterable[tuple[str, str]]) -> PydanticCustomError:
    """Values that are good each for itself but not together: pairs of a key path below the model and what is wrong.

    A validator of a whole model raises this, since pydantic would blame the section and not the key.
    """
    pairs = list(problems)
    context: dict[str, Any] = {"problems": pairs, "text": "; ".join(f"{path}: {message}" for path, message in pairs)}
    return PydanticCustomError("conflict", "{text}", context)


def _whole(value: object) -> object:
    # pydantic takes True for 1; `port: true` is a slip.
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a whole number")
    return value


def _given(path: Path) -> Path:
    if not path.name:
        raise ValueError(f"{str(path)!r} is not the path of a file")
    return path


Whole = Annotated[int, BeforeValidator(_whole)]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65_535)]
Milliseconds = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=86_400_000)]
FilePath = Annotated[Path, AfterValidator(_given)]
"""Path of a file that is opened later, by whoever needs it; relative to the working directory."""


def _host(text: str) -> str:
    if HOST_NAME.fullmatch(text) is None:
        raise ValueError("should be a host name or an IP address")
    return text


Host = Annotated[str, AfterValidator(_host)]
"""Host name or IP address."""


def check_pair(certificate_file: object, key_file: object) -> None:
    """Refuse a certificate without its key, and a key without its certificate."""
    if (certificate_file is None) != (key_file is None):
        lacking = "key_file" if key_file is None else "certificate_file"
        raise conflict([(lacking, "is missing: set certificate_file and key_file together")])
