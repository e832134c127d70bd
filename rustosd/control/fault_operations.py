"""What an operator can ask about programs' exceptions; the methods of `fault_protocol`."""

from typing import Any

from rustosd.control import fault_protocol as p
from rustosd.faults import Record
from rustosd.process.inventory import user_name
from rustosd.process.signals import signal_name


class FaultOperations:
    """The methods of `fault_protocol.METHODS`."""

    core: Any
    """Its `faults` is a `rustosd.faults.Faults`."""

    def faults_list(self, query: p.FaultQuery) -> list[p.Fault]:
        return [_row(record) for record in self.core.faults.records(query.kind, query.pid, query.limit)]

    def faults_read(self, which: p.FaultId) -> p.FaultReport:
        record, text = self.core.faults.text(which.id)
        return p.FaultReport(fault=_row(record), text=text)


def _row(record: Record) -> p.Fault:
    return p.Fault(id=record.id, at=record.at, pid=record.pid, thread=record.thread, program=record.program,
                   user=user_name(record.uid), kind=record.kind, signal=signal_name(record.signal), trap=record.trap,
                   error_code=record.error_code, address=record.address, words=record.words,
                   reported=record.report is not None)
