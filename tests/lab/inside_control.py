"""What tests ask of the daemon in the guest by its control socket."""

from typing import Any

import msgspec

from rustosd.control import protocol as p
from rustosd.control.client import CallFailed, Client


def control(method: str, **params: Any) -> Any:
    """One method of the daemon's, its answer as plain values; a refusal is its text."""
    try:
        with Client("/run/rustosd/control.sock") as client:
            return msgspec.to_builtins(client.call(method, msgspec.convert(params, p.METHODS[method].takes,
                                                                           dec_hook=p.decode_value)))
    except CallFailed as failure:
        return str(failure)
