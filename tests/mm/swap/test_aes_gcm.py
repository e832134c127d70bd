"""AES-256-GCM: two libraries do the same, and one that does not is not used."""

import ctypes
import os
import random
import shutil
import subprocess

import pytest

from mm.swap import aes_gcm
from mm.swap.aes_gcm import IpsecMb, Key, Libcrypto
from mm.swap.seal import LibraryMissing

PAGE = 4096


def lacks() -> str:
    """Why there is no ipsec-mb here; nothing when there is."""
    try:
        IpsecMb()
    except LibraryMissing as error:
        return str(error)
    return ""


IPSEC_MB_LACKS = lacks()
with_ipsec_mb = pytest.mark.skipif(bool(IPSEC_MB_LACKS), reason=IPSEC_MB_LACKS)


@pytest.fixture(params=[Libcrypto, pytest.param(IpsecMb, marks=with_ipsec_mb)])
def cipher(request):
    return request.param()


@pytest.mark.parametrize("library", [Libcrypto, pytest.param(IpsecMb, marks=with_ipsec_mb)])
def test_a_published_answer_is_given(library):
    """Test case 14 of McGrew and Viega, "The Galois/Counter Mode of Operation": the key and the nonce are zero."""
    text, seal = library(Key(bytes(32))).sealed(0, bytes(16))
    assert text.hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    assert seal.hex() == "d0d1c8a799996bf0265b98b5"


@with_ipsec_mb
def test_both_libraries_do_the_same_with_every_length():
    key, some = Key(), random.Random(1)
    one, other = Libcrypto(key), IpsecMb(key)
    for octets in range(1, PAGE + 1):
        number, page = some.getrandbits(64), some.randbytes(octets)
        sealed = one.sealed(number, page)
        assert sealed == other.sealed(number, page)
        assert one.opened(number, *sealed) == page == other.opened(number, *sealed)


@pytest.mark.parametrize("octets", [1, 16, 700, PAGE])
def test_what_was_changed_is_refused(cipher, octets):
    page = os.urandom(octets)
    text, seal = cipher.sealed(5, page)
    assert cipher.opened(5, text, seal) == page
    for bit in range(8 * len(seal)):
        assert cipher.opened(5, text, turned(seal, bit)) is None
    for bit in random.Random(octets).sample(range(8 * octets), min(8 * octets, 300)):
        assert cipher.opened(5, turned(text, bit), seal) is None
    for number in (4, 6, 5 + (1 << 32), 5 + (1 << 63)):
        assert cipher.opened(number, text, seal) is None
    assert type(cipher)().opened(5, text, seal) is None         # another key


def turned(octets: bytes, bit: int) -> bytes:
    changed = bytearray(octets)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_child_neither_seals_nor_opens(cipher):
    text, seal = cipher.sealed(1, b"moonlight")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cipher.sealed(2, b"moonlight")
        except OSError:
            status = 2 if cipher.opened(1, text, seal) is None else 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert cipher.opened(1, text, seal) == b"moonlight"


def key_pages() -> set[int]:
    """Where there are pages that are locked, in no core dump and empty in a child."""
    found, begin, end = set(), 0, 0
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            word = line.split()[0]
            if not word.endswith(":"):
                begin, end = (int(each, 16) for each in word.split("-"))
            elif word == "VmFlags:" and {"lo", "dd", "wf"} <= set(line.split()):
                found.update(range(begin, end, PAGE))
    return found


@pytest.mark.parametrize("library", [Libcrypto, pytest.param(IpsecMb, marks=with_ipsec_mb)])
def test_the_key_and_what_is_made_of_it_lie_in_one_page_that_goes_with_the_cipher(library):
    before, octets = key_pages(), bytes(range(32))
    cipher = library(Key(octets))
    page, = key_pages() - before
    content = ctypes.string_at(page, PAGE)
    assert content[8:40] == octets
    assert (content[64:96] == octets and any(content[96:PAGE])) is (library is IpsecMb)     # its first round key is the key
    del cipher
    assert key_pages() == before


@pytest.mark.parametrize("act", [lambda: Key(bytes(31)), lambda: Key(bytes(33)), lambda: Libcrypto().opened(0, b"x", bytes(11)),
                                 lambda: Libcrypto().opened(0, b"x", bytes(13))])
def test_a_key_or_a_seal_of_another_length_is_refused(act):
    with pytest.raises(ValueError, match="octets instead of"):
        act()


@with_ipsec_mb
def test_the_faster_one_is_chosen():
    told = []
    chosen = aes_gcm.aes_gcm(told.append)
    assert (type(chosen), chosen.name, chosen.encrypts, told) == (IpsecMb, "aes-256-gcm", True, [])


def test_without_the_instructions_it_is_not_even_opened(monkeypatch):
    told = []
    monkeypatch.setattr(aes_gcm, "processor_flags", lambda: aes_gcm.VAES_FLAGS - {"vaes"})
    with pytest.raises(LibraryMissing, match=r"a processor with vaes$"):
        IpsecMb()
    assert (aes_gcm.aes_gcm(told.append).by, told) == ("libcrypto.so.3", [])


@pytest.mark.parametrize("name", ["libnobody-has-this.so.1", "libc.so.6"])
def test_a_library_that_is_not_there_or_has_other_functions_does_not_matter(monkeypatch, name):
    told = []
    use(monkeypatch, name)
    assert (aes_gcm.aes_gcm(told.append).by, told) == ("libcrypto.so.3", [])


def use(monkeypatch, name) -> None:
    """Another library in the place of ipsec-mb, and a processor that it is for."""
    real = aes_gcm.library
    monkeypatch.setattr(aes_gcm, "processor_flags", lambda: aes_gcm.VAES_FLAGS)
    monkeypatch.setattr(aes_gcm, "library", lambda wanted, *rest: real(name if "IPSec" in wanted else wanted, *rest))


# ipsec-mb, but for one bit of what it does with 257 octets.
ALMOST = """
#include <dlfcn.h>
#include <stdint.h>
static void *real(const char *name) { return dlsym(dlopen(REAL, RTLD_NOW), name); }
#define ARGUMENTS const void *key, void *context, uint8_t *out, const uint8_t *in, uint64_t octets, const uint8_t *iv, \\
    const uint8_t *more, uint64_t more_octets, uint8_t *tag, uint64_t tag_octets
static void call(const char *name, ARGUMENTS) {
    ((void (*)(ARGUMENTS))real(name))(key, context, out, in, octets, iv, more, more_octets, tag, tag_octets);
}
void aes_gcm_pre_256_vaes_avx512(const void *key, void *data) {
    ((void (*)(const void *, void *))real("aes_gcm_pre_256_vaes_avx512"))(key, data);
}
void aes_gcm_enc_256_vaes_avx512(ARGUMENTS) {
    call("aes_gcm_enc_256_vaes_avx512", key, context, out, in, octets, iv, more, more_octets, tag, tag_octets);
    if (octets == 257) ENCRYPTED ^= 1;
}
void aes_gcm_dec_256_vaes_avx512(ARGUMENTS) {
    call("aes_gcm_dec_256_vaes_avx512", key, context, out, in, octets, iv, more, more_octets, tag, tag_octets);
    if (octets == 257) DECRYPTED ^= 1;
}
"""


def build(folder, encrypted="(int){0}", decrypted="(int){0}") -> str:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    (folder / "almost.c").write_text(ALMOST)
    defined = {"REAL": f'"{IpsecMb().by}"', "ENCRYPTED": encrypted, "DECRYPTED": decrypted}
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "almost.so", *(f"-D{name}={value}" for name, value in defined.items()),
                    "almost.c", "-ldl"], cwd=folder, check=True)
    return str(folder / "almost.so")


@with_ipsec_mb
@pytest.mark.parametrize("wrong", [{"encrypted": "out[256]"}, {"encrypted": "tag[11]"}, {"decrypted": "out[0]"},
                                   {"decrypted": "tag[0]"}])
def test_a_library_that_is_wrong_by_one_bit_is_told_and_not_used(monkeypatch, tmp_path, wrong):
    told = []
    use(monkeypatch, build(tmp_path, **wrong))
    assert aes_gcm.aes_gcm(told.append).by == "libcrypto.so.3"
    assert told == [f"{IpsecMb().by} does not encrypt as libcrypto does, which is used instead"]


@with_ipsec_mb
def test_the_same_library_without_a_fault_is_used(monkeypatch, tmp_path):
    use(monkeypatch, build(tmp_path))
    assert type(aes_gcm.aes_gcm()) is IpsecMb
