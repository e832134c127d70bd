"""What must not leave the daemon: which names hold secrets, and how they are left out of logs and reports."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

HIDDEN: Final = "(hidden)"
_NAMES: Final = re.compile(r"(^|_)pass$|pass(word|phrase|wd)$|secret|token|psk$|credential|cookie|private_?key$", re.IGNORECASE)
_ON_A_COMMAND_LINE: Final = re.compile(r"(?P<name>[\w.-]*(?:pass(?:word|phrase|wd)?|secret|token|psk|credential|key)[\w.-]*)"
                                       r"(?P<sign>[=:]\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&]+)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a key of this name holds something that is nobody else's business: `password`, `tls_psk`, `token`."""
    return _NAMES.search(name) is not None


def hidden(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the secrets of an event are not said."""
    for key, value in event.items():
        if isinstance(value, Mapping) or is_secret(key):
            event[key] = without_secrets(value) if not is_secret(key) else HIDDEN
    return event


def without_secrets(value: Any) -> Any:
    """A copy of mappings and lists in which the value of every secret name is HIDDEN."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret(str(key)) and inner not in (None, "") else without_secrets(inner)
                for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


def text_without_secrets(text: str) -> str:
    """The same for a text with `name=value` in it, such as the kernel's command line."""
    return _ON_A_COMMAND_LINE.sub(lambda found: f"{found['name']}{found['sign']}{HIDDEN}", text)
