"""The status page in a real browser, served by a real daemon: what a person sees, on three screens, by light and by dark."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustosd.status import words
from rustosd.status.page import FORMATS
from rustosd.status.recorder import POINTS
from tests.peers.conftest import V4, V6, Peer, url
from tests.support.browser import Browser, BrowserError, find_browser

PHONE, TABLET, DESKTOP = (390, 844), (820, 1180), (1440, 900)
CHECKS = (Path(__file__).parent / "page_checks.js").read_text()
KERNEL = "http://127.0.0.1:9477/"
PAGE = url(V4, "/")


@pytest.fixture(scope="module")
def browser(peer: Peer) -> Iterator[Browser]:
    """One browser in the daemon's namespace for all tests of the module."""
    program = find_browser()
    if program is None:
        pytest.skip("needs a browser: scripts/test installs chromium-headless-shell when run as root (65 MB to download)")
    with Browser(peer.netns, program) as running:
        yield running


@pytest.fixture
def live(browser: Browser) -> Browser:
    """The page on a desktop, following the daemon."""
    browser.resize(*DESKTOP)
    show(browser, PAGE)
    return browser


def show(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.until("document.querySelector('#live').textContent", lambda text: text == "Live")


def text_of(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})?.textContent"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, TABLET, DESKTOP], ids=["phone", "tablet", "desktop"])
def test_it_is_fit_to_be_seen(browser: Browser, peer: Peer, size: tuple[int, int], dark: bool, tmp_path: Path) -> None:
    peer.netns.run("curl", "-sf", "-o", "/dev/null", url(V4, "/bytes/5000000"))
    browser.resize(*size, dark=dark, mobile=size == PHONE)
    show(browser, PAGE)
    browser.evaluate("document.querySelector('#pause').click()")     # or it would paint over what is painted here
    with_note = """fetch("/status.json").then((answer) => answer.json()).then((status) => {
        for (const severity of ["error", "warning", "note"]) {
            status.health.push({code: "some-code", severity, subject: "", text: "Something is wrong.", advice: "Mend it."});
        }
        status.interfaces.push({...status.interfaces[1], name: "second0", link: "down"});
        rustosd.paint(status);
    })"""
    browser.evaluate(with_note)
    assert browser.evaluate(CHECKS) == []
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert browser.console == [] and browser.failed == []


@pytest.mark.parametrize("page", [PAGE, url(V6, "/"), KERNEL])
def test_it_follows_the_daemon_and_asks_nobody_else(browser: Browser, page: str) -> None:
    browser.resize(*DESKTOP)
    show(browser, page)
    before = browser.evaluate(text_of("[data-value=uptime_s]"))
    browser.until(text_of("[data-value=uptime_s]"), lambda text: text != before)
    assert {request.removeprefix(page).partition("?")[0] for request in browser.requests} <= {
        "", "status.css", "status.js", "status.json", "icon.svg"}
    assert browser.console == [] and browser.failed == []
    own_stack = browser.evaluate("document.body.innerText.includes('went through its own stack')")
    assert own_stack is (page != KERNEL)


def test_numbers_and_plots_move_with_traffic(live: Browser, peer: Peer) -> None:
    sent, plot = '[data-nic="rustos0"] [data-field=tx_octets]', "document.querySelector('.tx .line').getAttribute('d')"
    live.until(plot, lambda path: path.startswith("M"))
    peer.netns.run("curl", "-sf", "-o", "/dev/null", url(V4, "/bytes/50000000"))
    live.until(text_of(sent), lambda text: text.endswith(("MiB", "GiB")) and float(text.split()[0]) > 47)
    live.until(text_of('[data-nic="rustos0"] [data-peak=tx_history]'), lambda text: "Mbit/s" in text or "Gbit/s" in text)
    spots = [float(spot.split()[1]) for spot in live.evaluate(plot).removeprefix("M").split("L")]
    assert len(spots) <= POINTS and min(spots) == 1.0, "the peak reaches the top"
    assert "Mbit/s" in live.evaluate("document.querySelector('[data-plot=tx_history]').getAttribute('aria-label')")


def test_connections_and_drops_come_and_go(live: Browser, peer: Peer) -> None:
    rows, port = "document.querySelector('[data-rows=\"connections.busiest\"]').innerText", 45678
    slow = peer.netns.popen("curl", "-s", "-o", "/dev/null", "--local-port", str(port), "--limit-rate", "300K",
                            url(V6, "/bytes/100000000"))
    try:
        live.until(rows, lambda text: f"[{V6}]:80\t[fd77::1]:{port}\testablished" in text)
    finally:
        slow.kill()
        slow.wait()
    live.until(rows, lambda text: f":{port}\testablished" not in text)

    drops = "document.querySelector('[data-rows=drops]').innerText"
    before = live.evaluate(drops)
    peer.netns.run("bash", "-c", f"for i in $(seq 30); do echo x >/dev/tcp/{V4}/9; done", check=False)
    live.until(drops, lambda text: "tcp_port_closed" in text and text != before)
    assert "no listener on this TCP port" in live.evaluate(drops)


def test_every_control_is_reached_by_keyboard_and_shows_it(live: Browser) -> None:
    live.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(5):
        live.press("Tab")
        name, outline = live.evaluate("""(() => { const element = document.activeElement;
            return [element.textContent.trim(), parseFloat(getComputedStyle(element).outlineWidth)]; })()""")
        assert outline >= 2, f"{name} does not show that it has the focus"
        reached.append(name)
        if reached[-1] == "This page as JSON":
            break
    assert reached == ["Skip to content", "Pause", "Metrics for Prometheus", "This page as JSON"]
    live.evaluate("document.querySelector('.skip').focus()")
    assert live.evaluate("document.querySelector('.skip').getBoundingClientRect().left") >= 0
    live.press("Enter")
    assert live.until("document.activeElement.id", lambda identity: identity == "main")


def test_pause_stops_the_page_and_resume_goes_on(live: Browser) -> None:
    live.evaluate("document.querySelector('#pause').focus()")
    live.press(" ")
    assert live.evaluate("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    assert live.evaluate(text_of("#live")) == "Paused"
    before = live.evaluate(text_of("[data-value=uptime_s]"))
    time.sleep(5)               # two intervals
    assert live.evaluate(text_of("[data-value=uptime_s]")) == before
    live.press(" ")
    live.until(text_of("#live"), lambda text: text == "Live")
    live.until(text_of("[data-value=uptime_s]"), lambda text: text != before)


def test_a_screen_reader_gets_names_and_tables(live: Browser) -> None:
    nodes = live.accessibility()
    roles = {role: [node["name"] for node in nodes if node["role"] == role]
             for role in {node["role"] for node in nodes}}
    assert roles["main"] and roles["banner"] and roles["contentinfo"]
    assert set(roles["heading"]) == {"rustosd", "Health", "Interfaces", "rustos0 up", "Connections", "Dropped frames", "Memory",
                                     "Services"}
    assert set(roles["table"]) == {"Dropped frames by reason, the busiest first", "Services of this host",
                                   "The busiest connections"}
    assert "Try it" in roles["columnheader"] and "iperf3" in roles["cell"]
    assert all(name.startswith(("Receiving: ", "Sending: ")) for name in roles["image"]) and len(roles["image"]) == 2
    assert set(roles["meter"]) == {"TCP buffers", "The whole process"}
    for role in ("link", "button", "image", "meter", "table", "region", "article"):
        assert all(roles[role]), f"a {role} without a name"


def test_tables_stay_tables_on_a_phone(browser: Browser) -> None:
    browser.resize(*PHONE, mobile=True)
    show(browser, PAGE)
    roles = [node["role"] for node in browser.accessibility()]
    assert roles.count("table") == 3 and roles.count("columnheader") == 16 and "cell" in roles and "row" in roles


def test_without_javascript_the_current_state_is_there(browser: Browser) -> None:
    browser.resize(*PHONE, mobile=True)
    browser.javascript(False)
    try:
        browser.open(PAGE)
        names = " ".join(node["name"] for node in browser.accessibility() if node["role"] == "StaticText")
    finally:
        browser.javascript(True)
    for text in ("All is well", "rustos0", "10.77.0.2/24", "established", "iperf3", "reload it", "As of this moment"):
        assert text in names
    assert not any("status.json" in request for request in browser.requests)
    assert browser.failed == []


def test_hostile_names_stay_text(live: Browser) -> None:
    bad = "<img src=x onerror=alert(1)>\"'&"
    elements = "document.querySelectorAll('img, script, iframe').length"
    before = live.evaluate(elements)
    live.evaluate("document.querySelector('#pause').click()")
    live.evaluate("""fetch("/status.json").then((answer) => answer.json()).then((status) => {
        const bad = BAD;
        status.version = bad;
        status.addresses = [bad];
        status.interfaces.push({...status.interfaces[1], name: bad, kind: bad, mac: bad, link: bad, addresses: [bad]});
        status.services.push({name: bad, where: bad, connections: null, command: bad, link: "javascript:alert(1)"});
        status.drops.push({reason: bad, direction: bad, frames: 1, frames_per_s: 1, help: bad});
        status.connections.states = {[bad]: 1};
        status.connections.busiest.push({local: bad, remote: bad, state: bad, rx_octets: 1, tx_octets: 1, rtt_us: null,
                                         retransmits: 0});
        status.health.push({code: bad, severity: "error", subject: bad, text: bad, advice: bad});
        rustosd.paint(status);
    })""".replace("BAD", json.dumps(bad)))
    assert live.evaluate(elements) == before
    assert live.evaluate("document.body.innerText").count(bad) > 10
    assert live.evaluate("document.querySelectorAll('[href^=javascript]').length") == 0
    assert live.console == []


def test_page_and_daemon_say_numbers_alike(live: Browser) -> None:
    dice = random.Random(1)
    cases = {
        "count": [0, 999, 1000, 65536, 10**12],
        "octets": [0, 1, 1023, 1024, 1280, 1792, 10**6, 2**30 - 1, 2**40 + 2**38, 2**60,
                   *(dice.randrange(2**50) for _ in range(99))],
        "bits": [0, 999, 1000, 1250, 12_345_678, 5 * 10**18, *(dice.randrange(10**13) for _ in range(99))],
        "rate": [0, 0.1, 9.9, 9.95, 10, 10.5, 11.5, 1234.5, 99999.9, *(round(dice.random() * 1000, 1) for _ in range(99))],
        "frames": [0, 2.5, 12345.6],
        "duration": [0, 59.9, 60, 3599, 3600.5, 86399, 86400, 10**7, *(dice.random() * 10**6 for _ in range(99))],
        "ms": [None, 0.5, 62.5, 187.5, 250.0, 1234.567, *(dice.randrange(10**9) / 1000 for _ in range(99))],
        "text": ["x", "", None, 5], "list": [[], ["a", "b"]], "limit": [0, 2**30],
    }
    assert set(cases) == set(FORMATS)
    said = live.evaluate(f"Object.entries({json.dumps(cases)}).map(([name, values]) => values.map(rustosd.formats[name]))")
    assert said == [[FORMATS[name](value) for value in values] for name, values in cases.items()]
    for values in ([0, 50, 100], [0] * 100, [dice.randrange(10**9) for _ in range(POINTS)]):
        plot = live.evaluate(f"rustosd.plot({values}, {POINTS})")
        assert [plot["line"], plot["area"]] == [path.replace("\n", " ") for path in words.plot(values, POINTS)]


def test_a_daemon_that_does_not_answer_is_told_and_forgiven(live: Browser) -> None:
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    live.call("Network.emulateNetworkConditions", offline=True, **offline)
    try:
        live.until(text_of("#live"), lambda text: text == "No answer: what you see is old")
    finally:
        live.call("Network.emulateNetworkConditions", offline=False, **offline)
    live.until(text_of("#live"), lambda text: text == "Live")


def test_a_broken_link_shows_with_what_to_do(browser: Browser, peer: Peer) -> None:
    """Last, for it costs the kernel's IPv6 address. The stack cannot be reached meanwhile; the kernel's port can."""
    browser.resize(*DESKTOP)
    show(browser, KERNEL)
    notes = "document.querySelector('#notes').innerText"
    peer.netns.run("ip", "link", "set", "rustos0", "down")
    try:
        shown = browser.until(notes, lambda text: "link-down" in text)
        assert "rustos0 has no link." in shown and "ip link set NAME up" in shown and "Error" in shown
        assert browser.evaluate("document.title") == "rustosd: 1 error"
        assert browser.evaluate(text_of(".badge")) == "down"
        assert browser.evaluate(CHECKS) == []
    finally:
        peer.netns.run("ip", "link", "set", "rustos0", "up")
    browser.until(notes, lambda text: "link-down" not in text)
    assert browser.evaluate(text_of("#summary")) == "All is well"


def test_the_driver_notices_what_goes_wrong(live: Browser) -> None:
    """Else the silence above would prove nothing."""
    live.evaluate("console.error('on purpose'); 1")
    assert "on purpose" in live.console
    live.evaluate("fetch('http://192.0.2.1/').catch(() => 0)")
    assert any("192.0.2.1" in message for message in live.console), "the policy forbids it, and that is told"
    live.evaluate("document.querySelector('#live').style.color = '#999'; document.body.style.minWidth = '5000px'")
    live.evaluate("document.querySelector('caption').remove()")
    complaints = " ".join(live.evaluate(CHECKS))
    assert "contrast" in complaints and "px wide" in complaints and "without a caption" in complaints
    with pytest.raises(BrowserError, match="boom"):
        live.evaluate("(() => { throw new Error('boom'); })()")
