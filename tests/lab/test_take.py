"""Taking a NIC from Linux in a guest with its addresses and routes, serving on it, and giving all back on every way out."""

import hashlib
import json
import re
import sys
import time

import pytest

from tests.lab import inside_take as inside
from tests.lab.guest import AHCI, CARDS, EDU
from tests.lab.test_e1000 import pattern

V4, V6 = "10.8.0.2", "fd08::2"
PEER = ["10.8.0.1/24", "fd08::1/64"]
BYTES = 3_000_000
TAKE = 'interface = []\n[[device]]\n{}\n'
KERNEL_MADE = ("fe80::/64", "ff00::/8")
DRIVERS = {"e1000": "e1000", "e1000e": "e1000e", "e1000-45": "e1000"}
RUNNING = []
"""Daemons of the test that runs now, each with the guest it is in: that of another module may be gone."""
DAEMON = f"{sys.executable} -c 'from rustosd.cli.daemon import main; main()'"


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    guest.preload("tests.lab.inside_take")
    guest.run("sysctl -q vm.nr_hugepages=24")
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")
    for name, driver in DRIVERS.items():
        assert driver_of(guest, CARDS[name]) == driver


def driver_of(guest, card):
    return guest.run(f"basename $(readlink /sys/bus/pci/devices/{card.bdf}/driver)").stdout.strip()


def interface_of(guest, card):
    return guest.run(f"ls /sys/bus/pci/devices/{card.bdf}/net").stdout.strip()


class Nic:
    """A card that Linux in the guest uses, and the peer at the other end of its cable."""

    def __init__(self, guest, name):
        self.guest, self.card = guest, CARDS[name]
        for address in PEER:
            guest.netns.run("ip", "addr", "add", address, "dev", name, "nodad")
        self.interface = interface_of(guest, self.card)
        dev = f"dev {self.interface}"
        guest.run(" && ".join([
            f"ip link set {dev} mtu 1400 alias 'the lab' up", f"ip addr add {V4}/24 brd + {dev}",
            f"ip addr add 10.8.1.2/24 {dev} valid_lft 3600 preferred_lft 1800", f"ip addr add {V6}/64 {dev} nodad",
            f"ip route add 198.51.100.0/24 via 10.8.0.1 {dev} metric 70 src {V4}",
            f"ip route add 203.0.113.0/24 {dev} scope link", f"ip route add 192.0.2.0/24 via 10.8.0.1 {dev} table 77",
            f"ip -6 route add 2001:db8::/32 via fd08::1 {dev} metric 90",
            f"sysctl -q -w net.ipv4.conf.{self.interface}.rp_filter=2"]))

    def shown(self):
        """Addresses and routes as ip(8) tells them, without what time changes or comes with the cable."""
        dev = f"dev {self.interface}"
        said = self.guest.run(" && echo && ".join([
            f"ip -j addr show {dev}", f"ip -j -4 route show table all {dev}", f"ip -j -6 route show table all {dev}",
            f"cat /proc/sys/net/ipv4/conf/{self.interface}/rp_filter"]))
        (link,), *both, filtering = [json.loads(text) for text in said.stdout.split("\n") if text.strip()]
        addresses = [{key: value for key, value in row.items() if not key.endswith("_life_time") and key != "tentative"}
                     for row in link["addr_info"] if not row["local"].startswith("fe80:")]
        routes = [row for rows in both for row in rows if row.get("table") != "local" and row["dst"] not in KERNEL_MADE]
        for row in routes:
            row["flags"] = [flag for flag in row["flags"] if flag != "linkdown"]      # the cable takes its time
        return {"driver": driver_of(self.guest, self.card), "up": "UP" in link["flags"], "addresses": addresses,
                "routes": routes, "filtering": filtering} | {
                key: link.get(key) for key in ("ifname", "address", "mtu", "txqlen", "ifalias")}

    def peer(self, *command, **options):
        return self.guest.netns.run(*command, **options)

    def answers(self, host, seconds=120):
        """Ping until it answers."""
        limit = time.monotonic() + seconds
        while self.peer("ping", "-q", "-c", "1", "-W", "1", host, check=False).returncode:
            assert time.monotonic() < limit, f"{host} does not answer"

    def serves(self, seconds):
        """Fetch a page until it comes: the kernel answers pings, too."""
        limit = time.monotonic() + seconds
        while self.peer("curl", "-sf", "-m", "2", "-o", "/dev/null", f"http://{V4}/bytes/1", check=False).returncode:
            assert time.monotonic() < limit, "nobody serves"

    def restore(self):
        self.peer("ip", "addr", "flush", "dev", self.card.name)
        self.guest.run(f"ip link set dev {self.interface} down mtu 1500 alias '' && ip addr flush dev {self.interface} && "
                       f"cd /proc/sys/net/ipv4/conf && cat default/rp_filter > {self.interface}/rp_filter")


def clean(guest):
    """Whatever went wrong, the next test finds the cards where they belong."""
    while RUNNING:
        where, call = RUNNING.pop()
        if where is guest:
            call.kill()
    guest.call(inside.recover)


@pytest.fixture
def linux_uses(guest):
    used = []

    def start(name):
        used.append(Nic(guest, name))
        return used[-1]

    yield start
    clean(guest)
    for nic in used:
        nic.restore()


def start(guest, text):
    """A daemon in the guest and what it says once it is up."""
    call = guest.start(inside.daemon, text, timeout=400)
    RUNNING.append((guest, call))
    return call, call.next(150)


def end(guest, call, hello, number="TERM"):
    guest.run(f"kill -{number} {hello['pid']}")
    return call.finished()


@pytest.mark.parametrize(("name", "key"), [("e1000e", "bdf"), ("e1000", "mac")])
def test_a_nic_is_taken_with_all_it_had_and_given_back_as_it_was(guest, linux_uses, name, key):
    nic = linux_uses(name)
    before = nic.shown()
    assert before["up"] and len(before["addresses"]) == 3 and len(before["routes"]) == 7
    call, hello = start(guest, TAKE.format(f'{key} = "{getattr(nic.card, key)}"'))
    assert driver_of(guest, nic.card) == "vfio-pci"
    ours = {row["address"]: row["name"] for row in hello["addresses"] if row["name"] != "lo"}
    assert {f"{V4}/24", "10.8.1.2/24", f"{V6}/64"} < ours.keys() and set(ours.values()) == {nic.interface}
    row = next(row for row in hello["nics"] if row["name"] == nic.interface)
    assert (row["mtu"], row["mac"]) == (1400, nic.card.mac)
    assert hello["facts"][nic.interface]["kind"] == "e1000"
    routes = {(route["prefix"], route["gateway"], route["metric"]) for route in hello["routes"] if route["kind"] == "static"}
    assert routes == {("198.51.100.0/24", "10.8.0.1", 70), ("203.0.113.0/24", None, 0), ("2001:db8::/32", "fd08::1", 90)}
    assert f"{nic.interface} ({nic.card.bdf}, until now {DRIVERS[name]}'s)" in hello["announcement"]
    for host in (V4, V6):
        nic.answers(host)
        assert " 0% packet loss" in nic.peer("ping", "-q", "-f", "-c", "100", host).stdout
    capturing = guest.start(inside.capture, nic.interface, 20)
    assert capturing.next(60) == "capturing"
    nic.peer("ping", "-q", "-i", "0.05", "-c", "10", V4)
    seen = capturing.result()
    assert sorted(tuple(row[:2]) for row in seen["frames"]) == [("in", 98)] * 10 + [("out", 98)] * 10
    assert {row[2] for row in seen["frames"]} == {None}
    times = [row[3] for row in seen["frames"]]
    assert seen["complete"] and seen["lost"] == 0 and times == sorted(times)
    shown = seen["nic"]
    assert (shown["device"], shown["backend"], shown["kind"], shown["speed_mbps"]) == (nic.card.bdf, "vfio", "e1000", 1000)
    assert shown["interrupts"] in ("intx", "msix") and {ring["name"]: ring["descriptors"] for ring in shown["rings"]} == {
        "receive": 512, "transmit": 1024}
    assert shown["interrupt_statistics"]["wakeups"] > 0 and shown["statistics"]["rx_frames"] > 100
    expected = hashlib.sha256(pattern(BYTES)).hexdigest()
    assert nic.peer("sh", "-c", f"curl -sSf http://{V4}/bytes/{BYTES} | sha256sum").stdout.split()[0] == expected
    assert f'rustos_nic_rx_frames_total{{nic="{nic.interface}"}}' in nic.peer("curl", "-sSf", f"http://[{V6}]/metrics").stdout
    for direction in ([], ["-R"]):
        answer = json.loads(nic.peer("iperf3", "-c", V4, "--json", "-t", "1", *direction, check=False).stdout)
        assert answer["end"]["sum_received"]["bits_per_second"] > 1e6
    finished = end(guest, call, hello)
    assert finished.status == 0, finished.stderr
    assert nic.shown() == before
    assert not guest.run("ls /run/rustosd 2>/dev/null || true").stdout
    nic.answers(V4)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])
def test_killed_under_load_again_and_again_everything_comes_back(guest, linux_uses, times):
    nic = linux_uses("e1000")       # the faster one to get its link
    before = nic.shown()
    for _ in range(times):
        call, _hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"'))
        nic.answers(V4)
        load = guest.netns.popen("curl", "-s", "-o", "/dev/null", f"http://{V4}/bytes/1000000000")
        flood = guest.netns.popen("ping", "-q", "-f", "-c", "100000", V4, stdout=-3)
        time.sleep(0.3)
        call.kill()
        pending, failed, _ = guest.call(inside.recover)
        assert (pending, failed) == (1, [])
        assert nic.shown() == before
        for process in (load, flood):
            process.kill()
            process.wait()


@pytest.mark.long
def test_the_programs_themselves(guest, linux_uses):
    """`rustosd run`, killed, and `rustosd recover`."""
    nic = linux_uses("e1000e")
    before = nic.shown()
    guest.put("/tmp/take.toml", TAKE.format(f'mac = "{nic.card.mac}"\nname = "wan0"').encode())
    run = f"cd {inside.__file__.rpartition('/tests/')[0]} && exec {DAEMON} run --config /tmp/take.toml"
    call = guest._begin({"run": run, "timeout": 300}, "rustosd run", 300)
    RUNNING.append((guest, call))
    nic.serves(240)
    call.kill()
    assert call.finished().status == -9
    assert driver_of(guest, nic.card) == "vfio-pci"
    said = guest.run(run.replace("run --config", "recover --config"), timeout=300)
    assert "1 of 1 given back" in said.stdout
    assert nic.shown() == before


@pytest.mark.long
def test_by_uio_too_killed_and_recovered(guest, linux_uses):
    """Not the 82574: QEMU 7.2 aborts when Linux turns its MSI-X on while an INTx of the killed daemon is held back."""
    nic = linux_uses("e1000")
    before = nic.shown()
    call, _hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"\nbackend = "uio"'))
    assert driver_of(guest, nic.card) == "uio_pci_generic"
    nic.serves(120)
    call.kill()
    assert guest.call(inside.recover)[:2] == (1, [])
    assert nic.shown() == before


@pytest.mark.long
def test_long_frames_are_taken_over(guest, linux_uses):
    nic = linux_uses("e1000e")
    guest.run(f"ip link set dev {nic.interface} mtu 9000")
    nic.peer("ip", "link", "set", nic.card.name, "mtu", "9000")
    try:
        before = nic.shown()
        call, hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"\nname = "lan0"'))
        assert [row["mtu"] for row in hello["nics"] if row["name"] == "lan0"] == [9000]
        nic.serves(120)
        assert " 0% packet loss" in nic.peer("ping", "-q", "-c", "2", "-M", "do", "-s", "8972", V4).stdout
        assert end(guest, call, hello).status == 0
        assert nic.shown() == before
    finally:
        nic.peer("ip", "link", "set", nic.card.name, "mtu", "1500")


def test_what_carries_the_default_route_is_refused_unless_forced(guest, linux_uses):
    nic = linux_uses("e1000e")
    guest.run(f"ip route add default via 10.8.0.1 dev {nic.interface}")
    before = nic.shown()
    said = guest.call(inside.refused, TAKE.format(f'bdf = "{nic.card.bdf}"'))
    assert f"{nic.interface} carries the default route: give the host another way out first" in said
    assert nic.shown() == before
    call, hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"\nforce = true'))
    assert ("0.0.0.0/0", "10.8.0.1") in {(route["prefix"], route["gateway"]) for route in hello["routes"]}
    assert end(guest, call, hello).status == 0
    assert nic.shown() == before


def test_a_start_that_fails_half_way_gives_everything_back(guest, linux_uses):
    """The second card is bound and open when it turns out that it has no such interrupts."""
    nic = linux_uses("e1000e")
    before = nic.shown()
    text = TAKE.format(f'bdf = "{nic.card.bdf}"') + (
        f'[[device]]\nbdf = "{CARDS["e1000"].bdf}"\n[device.e1000]\ninterrupts = ["msi"]\n')
    said = guest.call(inside.refused, text)
    assert "0000:00:02.0: it has no interrupt of the kinds msi" in said
    assert nic.shown() == before
    assert driver_of(guest, CARDS["e1000"]) == "e1000"
    assert not guest.run("ls /run/rustosd 2>/dev/null || true").stdout


def test_a_missing_device_is_an_error_unless_it_is_optional(guest):
    said = guest.call(inside.refused, TAKE.format('mac = "02:00:00:00:00:99"'))
    assert "mac 02:00:00:00:00:99: there is no such device" in said and "optional = true" in said
    call, hello = start(guest, TAKE.format('mac = "02:00:00:00:00:99"\noptional = true'))
    assert hello["held"] == {}
    assert end(guest, call, hello).status == 0


def test_unbound_by_somebody_else_the_device_is_let_go_and_the_daemon_lives(guest, linux_uses):
    nic = linux_uses("e1000e")
    before = nic.shown()
    call, hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"'))
    nic.answers(V4)
    guest.run(f"echo {nic.card.bdf} > /sys/bus/pci/drivers/vfio-pci/unbind", timeout=10)
    time.sleep(0.5)
    guest.run(f"kill -0 {hello['pid']}")
    finished = end(guest, call, hello)
    assert finished.status == 0
    assert "the kernel has asked for it back" in finished.stderr + finished.stdout
    assert nic.shown() == before


def test_a_disk_named_by_its_serial_number_is_taken_with_its_controller(guest, linux_uses):     # which cleans up
    guest.run("modprobe -a ahci sd_mod")
    serials = "cat /sys/block/sd*/device/vpd_pg80 2>/dev/null | tr -d '\\0'"
    guest.run(f"until {serials} | grep -q LAB-DISK1; do sleep 0.1; done", timeout=60)
    call, hello = start(guest, TAKE.format('serial = "LAB-DISK1"'))
    assert hello["held"] == {AHCI: "ahci"}
    assert [(disk.name, disk.serial) for disk in hello["disks"]][:2] == [(f"{AHCI}/{n}", f"LAB-DISK{n}") for n in (0, 1)]
    assert "LAB-DISK1" not in guest.run(serials).stdout
    assert end(guest, call, hello).status == 0
    guest.run(f"until {serials} | grep -q LAB-DISK1; do sleep 0.1; done", timeout=60)


def test_a_group_is_taken_together_and_goes_back_together(guest, linux_uses):
    nic = linux_uses("e1000-45")
    before = nic.shown()
    guest.run(f"echo pci-stub > /sys/bus/pci/devices/{EDU}/driver_override")
    bdfs = [nic.card.bdf, EDU]
    try:
        seen = guest.call(inside.take_and_give, bdfs, EDU)
        assert guest.run(f"cat /sys/bus/pci/devices/{EDU}/driver_override").stdout.strip() == "pci-stub"
    finally:
        guest.run(f"echo > /sys/bus/pci/devices/{EDU}/driver_override")
    assert seen == {"kinds": {nic.card.bdf: "nic", EDU: "other"}, "during": dict.fromkeys(bdfs, "vfio-pci"),
                    "journalled": bdfs, "after": {nic.card.bdf: "e1000", EDU: None}, "held": [], "pending": 0}
    assert nic.shown() == before


def hung_on(nic):
    """Lines of ethtool(8), ip(8) and bridge(8) on a card's settings and the VLANs on it, without what changes by itself."""
    name = nic.interface
    said = nic.guest.run(f"for option in -g -k -a -c --show-eee --show-priv-flags ''; do ethtool $option {name} 2>&1; done; "
                         "ip -d link show type vlan; for each in lan.5 lan.6; do ip addr show $each; done; ip route; "
                         "bridge -d link", check=False).stdout
    said = re.sub(r"^\d+: |(Link detected|Speed|Duplex|MDI-X): .*|inet6 fe80.*|(valid|preferred)_lft.*| linkdown| state \w+|"
                  r"(?<=<)\S+(?=>)|\w+_timer +\S+", "", said, flags=re.M)
    return sorted(" ".join(line.split()) for line in said.splitlines() if line.strip())


def test_settings_and_vlans_come_back_and_what_cannot_is_told_first(guest, linux_uses):
    nic = linux_uses("e1000e")
    name = nic.interface
    guest.run(" && ".join([
        "modprobe -a 8021q bridge macvlan sch_tbf", f"ethtool -G {name} rx 512 tx 1024",
        f"ethtool -K {name} tso off rxvlan off", f"ethtool -A {name} autoneg off rx off tx on",
        f"ethtool -s {name} wol d msglvl 3", f"ethtool -C {name} rx-usecs 40",
        f"ip link add link {name} name lan.5 type vlan id 5 ingress-qos-map 1:2 egress-qos-map 3:4 4:5 loose_binding on",
        f"ip link add link {name} name lan.6 type vlan id 6 protocol 802.1ad", "ip link add br7 type bridge",
        "ip link set lan.6 master br7 up", "ip link set br7 up", "bridge link set dev lan.6 cost 77 hairpin on",
        "ip link set lan.5 mtu 1300 up", "ip addr add 10.55.0.2/24 dev lan.5", "ip route add 10.56.0.0/16 via 10.55.0.1",
        "ip link add link lan.5 name lan.5.8 type vlan id 8",
        f"tc qdisc add dev {name} root tbf rate 1mbit burst 10kb latency 10ms",
        "ip link add link lan.5 name mv0 type macvlan"]))
    try:
        said = guest.call(inside.refused, TAKE.format(f'bdf = "{nic.card.bdf}"'))
        assert f"the VLANs lan.5, lan.6 are on {name} and cease meanwhile" in said
        assert f"{name} has the queueing discipline tbf, mv0 (macvlan) on lan.5, and does not come back with that" in said
        guest.run(f"tc qdisc del dev {name} root; ip link del mv0")
        before, hanging = nic.shown(), hung_on(nic)
        for set_so in ("RX: 512", "tcp-segmentation-offload: off", "rx-usecs: 40", "lan.5.8@lan.5", "hairpin on"):
            assert set_so in " ".join(hanging)
        call, hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"\nforce = true'))
        assert guest.run("ip -br link show type vlan").stdout == ""
        finished = end(guest, call, hello)
        assert finished.status == 0 and "not_restored" not in finished.stderr, finished.stderr
        assert hung_on(nic) == hanging
        assert nic.shown() == before
    finally:
        guest.run(f"for each in lan.5 lan.6 br7; do ip link del $each; done; ethtool -s {name} wol g; "
                  f"ethtool -G {name} rx 256 tx 256; ethtool -K {name} tso on rxvlan on; "
                  f"ethtool -A {name} autoneg on rx on tx on; ethtool -C {name} rx-usecs 3", check=False)


@pytest.mark.long
def test_a_port_goes_back_to_its_bond(guest, linux_uses):
    nic = linux_uses("e1000")
    name = nic.interface
    guest.run(f"modprobe bonding max_bonds=0; ip link add bond7 type bond mode active-backup && ip addr flush dev {name} && "
              f"ip link set bond7 address 02:00:00:00:00:b7 && ip link set {name} down && "
              f"ip link set {name} mtu 1500 master bond7 && ip link set bond7 up && ip addr add {V4}/24 dev bond7")
    try:
        nic.answers(V4)
        said = guest.call(inside.refused, TAKE.format(f'bdf = "{nic.card.bdf}"'))
        assert f"{name} is part of bond7: detach it: ip link set {name} nomaster" in said
        call, hello = start(guest, TAKE.format(f'bdf = "{nic.card.bdf}"\nforce = true\naddress = ["10.8.0.9/24"]'))
        nic.answers("10.8.0.9")
        finished = end(guest, call, hello)
        assert finished.status == 0 and "not_restored" not in finished.stderr, finished.stderr
        link, = json.loads(guest.run(f"ip -d -j link show dev {name}").stdout)
        assert (link["master"], link["address"]) == ("bond7", "02:00:00:00:00:b7")
        assert nic.card.mac in guest.run(f"ethtool -P {name}").stdout
        nic.answers(V4)
    finally:
        guest.run(f"ip link del bond7; ip link set {name} address {nic.card.mac}", check=False)
