"""The configuration: the built-in one is as documented; whatever is wrong with a file is one line that says where."""

import itertools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustosd import config
from rustosd.config import Config, ConfigError, line_of, parse, to_toml
from rustosd.values import Cidr, HostPort, Mac, PciAddress, Prefix


def test_the_default_is_the_documented_host():
    default = config.default()
    (tap,) = default.interface
    assert (tap.kind, tap.name, tap.mtu, tap.offload) == ("tap", "rustos0", 1500, True)
    assert tap.address == ("10.77.0.2/24", "fd77::2/64")
    assert tap.kernel_address == ("10.77.0.1/24", "fd77::1/64")
    assert tap.gateway == ("10.77.0.1", "fd77::1")
    services = default.service
    assert [(s.enabled, s.port) for s in (services.echo, services.iperf3, services.http)] == [
        (True, 7), (True, 5201), (True, 80)]
    assert default.control.socket == "/run/rustosd/control.sock"


def test_an_empty_file_is_the_default():
    assert parse("", "empty.toml") == config.default()
    assert config.load(None) == config.default()


def test_a_table_is_completed_and_an_array_is_taken_whole():
    changed = parse('[service.http]\nport = 8080\n[[interface]]\nname = "t"\naddress = ["192.0.2.1/30"]\n', "x")
    assert changed.service.http.port == 8080 and changed.service.http.enabled
    assert changed.service.echo == config.default().service.echo
    assert [i.name for i in changed.interface] == ["t"]
    assert changed.interface[0].gateway == ()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        config.default().stack.max_routes = 1


TAP = '[[interface]]\nname = "a"\n'
NIC = '[[device]]\nbdf = "0000:03:00.0"\n'


@pytest.mark.parametrize(("text", "message"), [
    ("[stack]\nmax_conections = 3", "f:2: stack.max_conections: unknown; did you mean max_connections?"),
    ("[stak]\n", "f:1: stak: unknown; did you mean stack?"),
    ("[log]\nzzzzzz = 1", "f:2: log.zzzzzz: unknown; known here: level, format, levels"),
    (TAP + "\n# why\nmtuu = 3", "f:5: interface[0].mtuu: unknown; did you mean mtu?"),
    (TAP + TAP.replace('"a"', '"b"') + "mut = 3", "f:5: interface[1].mut: unknown; did you mean mtu?"),
    (TAP + TAP, "f:4: interface[1].name: a is the name of another interface already"),
    (TAP + 'mtu = "x"', "f:3: interface[0].mtu: expected int, got str"),
    (TAP + "mtu = 65536", "f:3: interface[0].mtu: expected int <= 65535"),
    (TAP + "mtu = 575", "f:3: interface[0].mtu: expected int >= 576"),
    (TAP + 'mtu = 1279\naddress = ["fd00::1/64"]',
     "f:3: interface[0].mtu: 1279 is too small for IPv6, which needs 1280 (RFC 8200 5)"),
    (TAP + 'address = ["192.0.2.1"]',
     "f:3: interface[0].address[0]: '192.0.2.1' lacks its prefix length, for example 192.0.2.1/24"),
    (TAP + 'address = ["192.0.2.1/24", "192.0.2.1/25"]', "f:3: interface[0].address[1]: 192.0.2.1 is there twice"),
    (TAP + 'address = ["224.0.0.1/24"]',
     "f:3: interface[0].address[0]: '224.0.0.1/24' cannot be the address of an interface"),
    (TAP + 'address = ["10.0.0.1/24"]\ngateway = ["10.0.1.1"]',
     "f:4: interface[0].gateway[0]: 10.0.1.1 is in no connected prefix (10.0.0.0/24)"),
    (TAP + 'address = ["10.0.0.1/24"]\ngateway = ["10.0.0.1"]',
     "f:4: interface[0].gateway[0]: 10.0.0.1 is the stack's own address"),
    (TAP + 'address = ["10.0.0.1/24"]\ngateway = ["10.0.0.2", "10.0.0.3"]',
     "f:4: interface[0].gateway[1]: a second IPv4 gateway; use [[route]] with a metric"),
    (TAP + 'address = ["10.0.0.1/24"]\nkernel_address = ["10.0.0.1/24"]',
     "f:4: interface[0].kernel_address[0]: 10.0.0.1 is the stack's own address on this interface"),
    (TAP + 'mac = "zz"', "f:3: interface[0].mac: 'zz' is no MAC address; write six octets as 02:00:5e:10:00:01"),
    (TAP + 'mac = "01:00:5e:00:00:01"', "f:3: interface[0].mac: '01:00:5e:00:00:01' is a multicast MAC address; "
     "clear the lowest bit of its first octet"),
    (TAP + "mac = 3", "f:3: interface[0].mac: expected a text, got 3"),
    ('[[interface]]\nname = "0123456789abcdef"', "f:2: interface[0].name: '0123456789abcdef' is no interface name: "
     "1 to 15 letters, digits, _, . and -, such as rustos0"),
    ('[[interface]]\nkind = "tun"\nname = "a"', "f:2: interface[0].kind: invalid enum value 'tun'; one of tap"),
    ("[[interface]]\nmtu = 1500", "f:1: interface[0]: lacks name"),
    ("[[device]]\nname = 'x'", "f:1: device[0]: needs exactly one of bdf, mac, serial"),
    (NIC + 'mac = "02:00:5e:10:00:01"', "f:3: device[0].mac: needs exactly one of bdf, mac, serial"),
    ('[[device]]\nbdf = "eth0"', "f:2: device[0].bdf: 'eth0' is no PCI address: write it as 0000:03:00.0"),
    ('[[device]]\nserial = " "', "f:2: device[0].serial: is empty; see `rustosctl device list`"),
    (NIC + NIC, "f:4: device[1].bdf: device[0] is the same one"),
    (NIC + 'name = "rustos0"', "f:3: device[0].name: rustos0 is the name of another interface already"),
    (NIC + 'address = ["10.77.0.2/24"]', "f:3: device[0].address[0]: 10.77.0.2 is there twice"),
    (NIC + 'backend = "usb"', "f:3: device[0].backend: invalid enum value 'usb'; one of vfio, uio, vfio-noiommu"),
    (NIC + 'mtu = 1000\naddress = ["fd00::1/64"]',
     "f:3: device[0].mtu: 1000 is too small for IPv6, which needs 1280 (RFC 8200 5)"),
    (NIC + 'adopt = false\ngateway = ["192.0.2.1"]', "f:4: device[0].gateway[0]: 192.0.2.1 is in no connected prefix (none)"),
    (NIC + 'gateway = ["192.0.2.1", "192.0.2.2"]',
     "f:3: device[0].gateway[1]: a second IPv4 gateway; use [[route]] with a metric"),
    (NIC + "[device.e1000]\nrx_ring = 100", "f:4: device[0].e1000.rx_ring: expected int that's a multiple of 8"),
    (NIC + "[device.e1000]\nmoderation = 3", "f:4: device[0].e1000.moderation: unknown; did you mean moderation_us?"),
    (NIC + '[device.e1000]\ninterrupts = ["msi", "irq"]',
     "f:4: device[0].e1000.interrupts[1]: invalid enum value 'irq'; one of msix, msi, intx"),
    (NIC + '[[route]]\nto = "192.0.2.0/24"\ninterface = "wan1"',
     "f:5: route[0].interface: no interface is called wan1; there is rustos0"),
    ('[[disk]]\nname = "a/b"\nkind = "ram"\nsize = "1M"',
     "f:2: disk[0].name: 'a/b' is no name of a disk: 1 to 32 letters, digits, _, . and -, such as disk0"),
    ('[[disk]]\nname = "a"', 'f:1: disk[0]: needs path = "..." for kind = "file"'),
    ('[[disk]]\nname = "a"\nkind = "ram"', 'f:1: disk[0]: needs size = "..." for kind = "ram"'),
    ('[[disk]]\nname = "a"\nkind = "ram"\nsize = "1M"\npath = "/a"',
     'f:5: disk[0].path: is for kind = "file" and "device", not for memory'),
    ('[[disk]]\nname = "a"\nkind = "device"\npath = "/dev/a"\nsize = "1M"', "f:5: disk[0].size: a device has its own"),
    ('[[disk]]\nname = "a"\npath = "/a"\nsize = "big"',
     "f:4: disk[0].size: 'big' is no amount of octets, such as 4096, 64K or 1MiB"),
    ('[[disk]]\nname = "a"\npath = "/a"\n[[disk]]\nname = "a"\npath = "/b"',
     "f:5: disk[1].name: a is the name of another disk already"),
    ('[[disk]]\nname = "a"\npath = "/a"\n[[disk]]\nname = "b"\npath = "/a"', "f:6: disk[1].path: /a is disk a already"),
    ('[[disk]]\nname = "a"\npath = "/a"\nsector_octets = 520',
     "f:4: disk[0].sector_octets: invalid enum value 520; one of 512, 4096"),
    ("interface = []", "f:1: interface: at least one [[interface]] or [[device]] is needed"),
    ("[service.http]\nport = 7", "f:2: service.http.port: 7 is the port of service echo already"),
    ("[service.http]\nport = 70000", "f:2: service.http.port: expected int <= 65535"),
    ("[service]\necho = 3", "f:2: service.echo: expected a table, got int"),
    ("service.http.port = 0", "f:1: service.http.port: expected int >= 1"),
    ('[log]\nlevel = "loud"', "f:2: log.level: invalid enum value 'loud'; one of debug, info, warning, error"),
    ('[control]\nsocket = "run/x"',
     "f:2: control.socket: 'run/x' is no absolute path, such as /run/rustosd/control.sock"),
    ('"a\\nb" = 1',
     "f:1: 'a\\nb': unknown; known here: stack, pump, interface, service, control, sockets, metrics, status, host, log, crash, "
     "audit, scheduler, nbd, swap, export, device, route, disk, policy, program"),
    ("[metrics]\nenabled = 1", "f:2: metrics.enabled: expected bool, got int"),
    ('[metrics]\nlisten = "localhost:9477"',
     "f:2: metrics.listen: 'localhost:9477' is no address and port, such as 127.0.0.1:9477 or [::1]:9477"),
    ('[metrics]\nsocket = ""', "f:2: metrics.socket: '' is no absolute path, such as /run/rustosd/control.sock"),
    ("[status]\nconnections = 3", "f:2: status.connections: expected bool, got int"),
    ('[[route]]\nto = "10.0.0.1/8"\nvia = "10.77.0.1"',
     "f:2: route[0].to: '10.0.0.1/8' has bits set behind the prefix; did you mean 10.0.0.0/8?"),
    ('[[route]]\nto = "10.0.0.0/8"', 'f:1: route[0]: needs via = "GATEWAY" or interface = "NAME"'),
    ('[[route]]\nto = "10.0.0.0/8"\nvia = "fd77::1"',
     "f:3: route[0].via: fd77::1 is not of the same family as 10.0.0.0/8"),
    ('[[route]]\nto = "10.0.0.0/8"\nvia = "192.0.2.1"',
     "f:3: route[0].via: 192.0.2.1 is in no connected prefix (10.77.0.0/24, fd77::/64)"),
    ('[[route]]\nto = "10.0.0.0/8"\ninterface = "eth7"',
     "f:3: route[0].interface: no interface is called eth7; there is rustos0"),
    ('[nbd.tls]\nmode = "required"',
     'f:2: nbd.tls.mode: required needs certificate = "FILE" or psk = "FILE"; docs/nbd.md shows how to make either'),
    ('[nbd.tls]\nmode = "on"', "f:2: nbd.tls.mode: invalid enum value 'on'; one of off, optional, required"),
    ('[nbd]\nunix = "nbd.sock"', "f:2: nbd.unix: 'nbd.sock' is no absolute path, such as /run/rustosd/control.sock"),
    ('[nbd]\nmax_request_octets = 67108864', "f:2: nbd.max_request_octets: expected int <= 33554432"),
    ('[[export]]\nname = "a"\ndisk = "d"\n[[export]]\nname = "a"\ndisk = "e"',
     "f:5: export[1].name: a is the name of export[0] already"),
    ('[[export]]\nname = "a"\ndisk = "d"\ntls_only = true',
     'f:4: export[0].tls_only: needs TLS: mode = "optional" or "required" under [nbd.tls]'),
    ('[[export]]\nname = "a"', "f:1: export[0]: lacks disk"),
    ("[log]\nlevel", "f: expected '=' after a key in a key/value pair, at the end of the file"),
    ("[log]\nlevel = \n[x]", "f:2: invalid value"),
])
def test_what_is_wrong_is_one_line_that_says_where(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert str(caught.value) == message


def test_devices_may_stand_for_interfaces():
    made = parse('interface = []\n[[device]]\nbdf = "03:00.0"\n'
                 '[[device]]\nmac = "52-54-00-12-34-56"\nname = "wan0"\noptional = true\nbackend = "uio"\nforce = true\n'
                 'adopt = false\nmtu = 9000\naddress = ["192.0.2.2/24"]\ngateway = ["192.0.2.1"]\n'
                 '[device.e1000]\ninterrupts = ["msi", "intx"]\nmoderation_us = 0\nrx_ring = 256\ntx_ring = 128\n'
                 'mac = "02:00:5e:10:00:01"\n[[device]]\nserial = "WD-1"\n[[route]]\nto = "198.51.100.0/24"\n'
                 'interface = "wan0"\n', "f")
    assert made.interface == () and [device.which for device in made.device] == [
        "bdf 0000:03:00.0", "mac 52:54:00:12:34:56", "serial WD-1"]
    plain, wan, _ = made.device
    assert plain == config.DeviceConfig(bdf=PciAddress("0000:03:00.0"))
    assert (plain.adopt, plain.optional, plain.force, plain.backend, plain.mtu) == (True, False, False, "vfio", None)
    assert wan.e1000 == config.E1000Config(interrupts=("msi", "intx"), moderation_us=0, rx_ring=256, tx_ring=128,
                                           mac=Mac("02:00:5e:10:00:01"))
    assert parse(to_toml(made), "shown") == made


def test_a_gateway_may_lie_in_what_is_taken_over():
    made = parse(NIC + 'gateway = ["192.0.2.1"]\n[[route]]\nto = "198.51.100.0/24"\nvia = "192.0.2.9"\n', "f")
    assert made.device[0].gateway == ("192.0.2.1",)


def test_the_example_in_the_default_file_is_right():
    lines = config.default_text().splitlines()
    start = lines.index("# [[device]]")
    example = itertools.takewhile(str.strip, lines[start:])
    made = parse("\n".join(line.removeprefix("# ") for line in example), "default.toml")
    assert made.device[0].which == "bdf 0000:03:00.0" and made.device[0].e1000.rx_ring == 512


def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory; `rustosd config default` prints one"):
        config.load(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        config.load(binary)


@pytest.mark.parametrize(("path", "line"), [
    (("stack", "a"), 2), (("interface", 0, "name"), 5), (("interface", 1, "name"), 9), (("interface", 1), 8),
    (("interface", 1, "x", "y"), 11), (("service", "http", "port"), 13), (("nowhere",), 1), ((), 1),
])
def test_lines_are_found(path, line):
    text = ("[stack]\na = 1 # [interface]\n\n[[interface]] # first\nname = 'a'\nlist = [\n 1]\n[[interface]]\n"
            "name = 'b'\n[interface.x]\ny = 1\n[service]\n'http'.port = 80\n")
    assert line_of(text, path) == line


names = st.text(string.ascii_lowercase, min_size=1, max_size=12)
interfaces = st.lists(st.tuples(names, st.integers(1280, 65535), st.booleans()), min_size=1, max_size=3,
                      unique_by=lambda i: i[0])


@settings(deadline=None)
@given(interfaces, st.sampled_from(["debug", "info"]), st.integers(100, 5000))
def test_what_is_shown_can_be_read_back(given_interfaces, level, port):
    listen = f'listen = "[::1]:{port}"\nsocket = "/run/{level}.sock"' if port % 2 else ""
    text = f'[log]\nlevel = "{level}"\n[service.http]\nport = {port}\n[metrics]\n{listen}\n' + "".join(
        f'[[interface]]\nname = "{name}"\nmtu = {mtu}\noffload = {str(offload).lower()}\n'
        f'address = ["192.0.2.{n}/24"]\n[[route]]\nto = "198.51.{n}.0/24"\nvia = "192.0.2.99"\n'
        for n, (name, mtu, offload) in enumerate(given_interfaces, 1))
    made: Config = parse(text, "f")
    assert parse(to_toml(made), "shown") == made


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_configuration_or_one_line(text):
    try:
        parse(text, "f")
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(deadline=None)
@given(st.recursive(st.integers() | st.booleans() | st.text(string.ascii_letters, max_size=5) | st.none(),
                    lambda inner: st.lists(inner, max_size=3)))
def test_any_value_anywhere_is_one_line(value):
    import tomli_w
    for section in ("stack", "interface", "device", "service", "control", "log", "route", "nbd", "export"):
        for document in ({section: value}, {section: {"level": value, "port": value, "socket": value}},
                         {section: [{"name": value, "address": value, "to": value, "mac": value, "bdf": value,
                                     "e1000": value}]}):
            try:
                text = tomli_w.dumps(document)
            except TypeError:       # TOML has no null
                return
            try:
                parse(text, "f")
            except ConfigError as error:
                assert "\n" not in str(error)


def test_values_have_one_form():
    assert Mac("02-00-5E-10-00-01") == "02:00:5e:10:00:01" and Mac("02:00:5e:10:00:01").octets == b"\x02\0^\x10\0\1"
    assert PciAddress("03:00.0") == PciAddress("0000:03:00.0") == "0000:03:00.0"
    assert Cidr("FD77:0::2/64") == "fd77::2/64"
    assert Prefix("default") == "0.0.0.0/0" and Prefix("192.0.2.7") == "192.0.2.7/32" and Prefix("::/0").version == 6


@pytest.mark.parametrize(("text", "host", "port"), [
    ("127.0.0.1:9477", "127.0.0.1", 9477), ("[0:0::1]:080", "::1", 80), ("0.0.0.0:65535", "0.0.0.0", 65535)])
def test_a_place_to_listen_has_two_parts(text, host, port):
    place = HostPort(text)
    assert (place.host, place.port) == (host, port) and HostPort(place) == place


@pytest.mark.parametrize("text", ["", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:80",
                                  "[127.0.0.1]:80", "[::1]", "h:80", "127.0.0.1:8 0", "127.0.0.1:+80", "[::1:80",
                                  "127.0.0.1:\u0664"])
def test_what_is_no_place_to_listen(text):
    with pytest.raises(ValueError, match="is no address and port"):
        HostPort(text)
