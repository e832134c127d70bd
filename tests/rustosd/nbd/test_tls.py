"""TLS, with GnuTLS on the other side (libnbd's): certificates, clients that must have one, pre-shared keys, and failures."""

import asyncio
import ssl
import subprocess

import pytest

from rustosd.nbd import tls
from rustosd.nbd.negotiation import Tls
from rustosd.nbd.server import Limits
from tests.rustosd.nbd.test_clients import run

CN = "localhost"


def certificate(folder, name, *, of=None, ca=False):
    """A key and a certificate, signed by itself or by `of`."""
    key, made = folder / f"{name}-key.pem", folder / f"{name}-cert.pem"
    subject = ["-subj", f"/CN={CN if not ca else name}", "-days", "2"]
    extra = ["-addext", "basicConstraints=critical,CA:TRUE"] if ca else ["-addext", f"subjectAltName=DNS:{CN}"]
    signer = ["-CA", folder / f"{of}-cert.pem", "-CAkey", folder / f"{of}-key.pem"] if of else []
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", "-x509", *curve, "-keyout", key, "-out", made, *subject, *extra, *signer], check=True,
                   capture_output=True)
    return str(made), str(key)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """A directory as libnbd wants it, with a CA, a server's and a client's certificates."""
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "ca", ca=True)
    certificate(folder, "server", of="ca")
    certificate(folder, "client", of="ca")
    return folder


def context(pki, **more):
    return tls.context(str(pki / "server-cert.pem"), str(pki / "server-key.pem"), more.get("client_ca"), more.get("psk"))


async def with_tls(uri, script, directory="", more=""):
    """Run libnbd's Python with TLS required."""
    before = f"h.set_tls(nbd.TLS_REQUIRE)\nh.set_tls_certificates({str(directory)!r})\n" if directory else ""
    return await run("/usr/bin/python3", "-c", f"import nbd\nh = nbd.NBD()\nh.set_uri_allow_local_file(True)\n{before}{more}"
                     f"h.connect_uri({uri!r})\n{script}")


BODY = """
data = bytes(range(256)) * 4096
h.pwrite(data, 0)
assert h.pread(len(data), 0) == data and h.get_tls_negotiated()
h.flush(); h.shutdown(); print("fine")
"""


@pytest.mark.parametrize("mode", [Tls.SELECTIVE, Tls.FORCED])
async def test_certificates(make, pki, mode):
    made = make(tls=mode, tls_context=context(pki))
    made.export()
    uri = f"nbds+unix://{CN}/disk?socket={made.path}&tls-certificates={pki}"
    assert "fine" in await with_tls(uri, BODY)
    if mode is Tls.FORCED:
        assert "error" in await run("nbdinfo", made.uri(), check=False)
    else:
        await run("nbdinfo", made.uri())
    await asyncio.sleep(0.1)
    assert not made.server.relays


async def test_exports_for_tls_only(make, pki):
    made = make(tls=Tls.SELECTIVE, tls_context=context(pki))
    made.export("open")
    made.export("secret", tls_only=True)
    assert "secret" not in await run("nbdinfo", "--list", made.uri(""))
    assert "TLS" in await run("nbdinfo", made.uri("secret"), check=False)
    assert "fine" in await with_tls(f"nbds+unix://{CN}/secret?socket={made.path}&tls-certificates={pki}", BODY)


async def test_clients_must_have_a_certificate(make, pki, tmp_path):
    made = make(tls=Tls.FORCED, tls_context=context(pki, client_ca=str(pki / "ca-cert.pem")))
    made.export()
    uri = f"nbds+unix://{CN}/disk?socket={made.path}&tls-certificates="
    assert "fine" in await with_tls(f"{uri}{pki}", BODY)
    (tmp_path / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())
    with pytest.raises(AssertionError):
        await with_tls(f"{uri}{tmp_path}", BODY)
    for _ in range(50):
        if made.server.refused["tls_handshake"]:
            break
        await asyncio.sleep(0.02)
    assert made.server.refused["tls_handshake"] == 1


async def test_pre_shared_keys(make, tmp_path):
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "ab" * 32 + "\n")
    try:
        made = make(tls=Tls.FORCED, tls_context=tls.context(None, None, None, str(keys)))
    except tls.TlsError as error:
        assert "rustosd[psk]" in str(error) and not hasattr(ssl.SSLContext, "set_psk_server_callback")
        pytest.skip("needs Python 3.13 or sslpsk3")
    made.export()
    uri = f"nbds+unix://alice@{CN}/disk?socket={made.path}&tls-psk-file="
    assert "fine" in await with_tls(f"{uri}{keys}", BODY)
    other = tmp_path / "other.psk"
    other.write_text("alice:" + "cd" * 32 + "\n")
    with pytest.raises(AssertionError):
        await with_tls(f"{uri}{other}", BODY)


async def test_a_client_that_leaves_or_babbles_during_the_handshake_of_tls(make, pki):
    made = make(tls=Tls.FORCED, tls_context=context(pki))
    made.export()
    for say in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(1000)):
        reader, writer = await asyncio.open_unix_connection(made.path)
        await reader.readexactly(18)
        writer.write(bytes([0, 0, 0, 3]) + b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0]))
        await reader.readexactly(20)
        writer.write(say)
        if not say:
            writer.close()
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    for _ in range(50):
        if not made.server.relays:
            break
        await asyncio.sleep(0.02)
    assert made.server.refused["tls_handshake"] == 3 and not made.server.handshakes and not made.server.relays


async def test_a_handshake_of_tls_that_stalls_has_no_longer_than_any(make, pki):
    made = make(Limits(handshake_s=0.3), tls=Tls.FORCED, tls_context=context(pki))
    made.export()
    for say in (b"", bytes.fromhex("1603010200010001fc")):      # half a ClientHello
        reader, writer = await asyncio.open_unix_connection(made.path)
        await reader.readexactly(18)
        writer.write(bytes([0, 0, 0, 3]) + b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0]))
        await reader.readexactly(20)
        writer.write(say)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert made.server.refused["handshake_timeout"] == 2 and not made.server.handshakes and not made.server.relays


@pytest.mark.parametrize(("content", "words"), [
    ("", "has no key"), ("alice\n", ":1: not identity:key"), ("alice:zz\n", "not identity:key"), ("a:" + "00" * 8, "16 to 64"),
])
def test_a_file_of_keys_that_is_none(tmp_path, content, words):
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(tls.TlsError, match=words):
        tls.read_keys(str(path))


def test_certificates_that_are_none(tmp_path):
    path = tmp_path / "cert.pem"
    with pytest.raises(tls.TlsError, match="cannot be read"):
        tls.context(str(path), None, None, None)
    path.write_text("nothing")
    with pytest.raises(tls.TlsError, match="PEM"):
        tls.context(str(path), None, None, None)
    with pytest.raises(tls.TlsError, match="client_ca"):
        tls.context(None, None, str(path), None)
