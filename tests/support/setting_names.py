"""The names of all settings, as variables of the environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

from cli.settings import PREFIX, Settings


def setting_names() -> frozenset[str]:
    """Every variable that a process takes, those with `_FILE` included."""
    names = set(_names(Settings, PREFIX))
    return frozenset(names | {f"{name}_FILE" for name in names})


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        models = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if models:
            yield from _names(models[0], f"{variable}__")
        else:
            yield variable
