"""Node declarations that every supported host version accepts."""

from __future__ import annotations

from typing import Any

from .host import io

VARModel = io.Custom("VAR_MODEL")
VARTrace = io.Custom("VAR_TRACE")


def schema(**fields) -> io.Schema:
    """io.Schema without the fields this host does not know: one unknown name would take the whole pack down."""
    return io.Schema(**{k: v for k, v in fields.items() if k in io.Schema.__dataclass_fields__})


def with_options(extra: dict, kind: Any, *args, **options):
    """An input of io type `kind` with options that older hosts' constructors do not know; the browser reads them."""

    class Extended(kind.Input):
        def as_dict(self):
            return super().as_dict() | extra

    return Extended(*args, **options)


def advanced(kind: type, *args, **options):
    """An input shown under "advanced"."""
    return with_options({"advanced": True}, kind, *args, **options)
