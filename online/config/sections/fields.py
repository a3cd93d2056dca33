"""How a setting is declared."""

from typing import Annotated, Any

from pydantic import Field
from pydantic.fields import FieldInfo

Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def setting(default: Any, what: str, advice: str = "", **limits: Any) -> Any:
    """A setting: its default, what it does, and when an operator would change it. `limits` are pydantic's."""
    return Field(default, description=what, json_schema_extra={"advice": advice}, **limits)


def fixed(default: Any, what: str, **limits: Any) -> Any:
    """A value that only code sets (tests, experiments): no variable, no file of settings and no secret does."""
    return Field(default, description=what, json_schema_extra={"fixed": True}, **limits)


def advice_on(field: FieldInfo) -> str:
    """When an operator would change it; empty where there is nothing to say."""
    extra = field.json_schema_extra
    return str(extra.get("advice", "")) if isinstance(extra, dict) else ""


def is_fixed(field: FieldInfo) -> bool:
    """Whether only code sets it."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("fixed"))
