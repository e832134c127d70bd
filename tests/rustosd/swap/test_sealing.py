"""How a store seals: what is told of a library that is not used."""

import logging

from mm.swap import aes_gcm
from rustosd.swap import sealing
from tests.mm.swap.test_aes_gcm import with_ipsec_mb


def test_it_encrypts_or_not_as_is_wanted():
    assert (sealing.sealer(True).name, sealing.sealer(False).name) == ("aes-256-gcm", "xxh3")


@with_ipsec_mb
def test_a_library_that_encrypts_otherwise_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(aes_gcm, "agree", lambda one, other: False)
    with caplog.at_level(logging.WARNING):
        assert sealing.sealer(True).by == "libcrypto.so.3"
    assert caplog.messages == [f"swap: {aes_gcm.IpsecMb().by} does not encrypt as libcrypto does, which is used instead"]
