"""Node declarations that every supported host version accepts."""

from __future__ import annotations

from .bridge import io

VARModel = io.Custom("VAR_MODEL")
VARTrace = io.Custom("VAR_TRACE")


def schema(**fields) -> io.Schema:
    """io.Schema without the fields this host does not know: one unknown name would take the whole pack down."""
    return io.Schema(**{k: v for k, v in fields.items() if k in io.Schema.__dataclass_fields__})


def advanced(kind: type, *args, **options):
    """An input of io type `kind` shown under "advanced"; as a plain option, since hosts before 0.9.2 lack the keyword."""

    class Advanced(kind.Input):
        def as_dict(self):
            return super().as_dict() | {"advanced": True}

    return Advanced(*args, **options)
