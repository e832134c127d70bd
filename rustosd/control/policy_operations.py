"""What an operator can ask about policies; the methods of `policy_protocol`."""

from typing import Any

from rustosd.control import policy_protocol as p
from rustosd.control.base import Nothing
from rustosd.policy import PORTS_OF_ROOT, PRIVILEGED


class PolicyOperations:
    """The methods of `policy_protocol.METHODS`."""

    core: Any
    """Its `policies` is a `rustosd.policy.Policies`."""

    def policy_list(self, _: Nothing) -> list[p.Policy]:
        policies = self.core.policies
        rows = [p.Policy(name=each.name, users=list(each.users), groups=list(each.groups),
                         connect=None if each.connect is None else list(map(str, each.connect)),
                         bind=None if each.bind is None else list(map(str, each.bind)), denied=_denied(policies, each.name))
                for each in policies.configured.values()]
        ports = p.Policy(name=PRIVILEGED, users=[], groups=[], connect=None,
                         bind=[f"{PORTS_OF_ROOT}-65535"], denied=_denied(policies, PRIVILEGED))
        return [*rows, ports]


def _denied(policies: Any, name: str) -> dict[str, int]:
    return {what: count for (policy, what), count in sorted(policies.denied.items()) if policy == name}
