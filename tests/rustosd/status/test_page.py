"""The page without a browser: whole without JavaScript, readable in a terminal, and proof against hostile names."""

from html.parser import HTMLParser

import msgspec
import pytest

from rustosd.health import Note
from rustosd.services.http import HttpService
from rustosd.status import document, page, words
from rustosd.status.site import POLICY, site
from tests.rustosd.fake import FakeCore
from tests.rustosd.status.test_document import reporter
from tests.services.test_http import curl, statuses, url

HOSTILE = '"><script>alert(1)</script><b \'&{host}%s\x00'
VOID = {"meta", "link", "path"}


class Outline(HTMLParser):
    """The elements of a document with their attributes, and its text; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def rendered(status=None, **options):
    return page.render(status or reporter().status(), "abc", **options).decode()


def test_all_of_it_is_there_without_javascript():
    outline = Outline(rendered())
    text = " ".join(" ".join(outline.words).split())
    for words_ in ("rustosd", "10.77.0.2", "0.1.0", "All is well", "rustos0", "up", "02:00:5e:10:00:01", "5.0 GiB",
                   "[fd77::1]:40000", "0.250 ms", "ipv4_checksum", "wrong IPv4 header checksum", "nc 10.77.0.2 7", "65,536",
                   "Every packet of this page went through its own stack", "reload it"):
        assert words_ in text
    assert "kernel" in rendered(own_stack=False)


def test_it_is_readable_in_a_terminal():
    assert max(map(len, rendered().splitlines())) < 200


def test_it_is_one_document_with_nothing_from_elsewhere():
    outline = Outline(rendered())
    tags = [tag for tag, _ in outline.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("footer") == 1
    for _tag, attributes in outline.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "/").startswith(("/", "#")) and not attributes.get(name, "").startswith("//")
        assert not any(name.startswith("on") or name == "style" for name in attributes), "the policy forbids both"
    identities = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in outline.elements:
        for reference in (attributes.get("aria-labelledby"), attributes.get("href", "")[1:] or None):
            if reference and "/" not in reference and "?" not in reference and "." not in reference:
                assert reference in identities or f"/{reference}" == "/metrics"


def poisoned(value):
    """The same value with every text in it hostile."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    if isinstance(value, dict):
        return {f"{HOSTILE}{key}": each for key, each in value.items()}
    if isinstance(value, msgspec.Struct):
        kept = {"field", "kind", "severity", "link"} if not isinstance(value, document.Service) else {"link"}
        return type(value)(*(getattr(value, name) if name in kept else poisoned(getattr(value, name))
                             for name in value.__struct_fields__))
    return value


def test_hostile_names_stay_text():
    status = reporter().status()
    status = msgspec.structs.replace(status, health=[Note("c", "error", "s", "t", "a")])
    honest, hostile = Outline(rendered(status)), Outline(rendered(poisoned(status)))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in honest.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [set(attributes) for _, attributes in honest.elements]
    assert sum(word.count("<script>alert(1)</script>") for word in hostile.words) > 20


def test_loopback_shows_once_it_is_used():
    core = FakeCore()
    assert 'data-nic="lo"' not in rendered(reporter(core).status())
    core.stack.nics[0]["rx_frames"] = 1
    assert 'data-nic="lo"' in rendered(reporter(core).status())


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 bit/s"), (999, "999 bit/s"), (1000, "1.0 kbit/s"), (12_345_678, "12.3 Mbit/s"), (9.9e12, "9.9 Tbit/s"),
    (5e18, "5000000.0 Tbit/s")])
def test_bit_rates(value, text):
    assert words.bit_rate(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0/s"), (0.1, "0.1/s"), (9.5, "9.5/s"), (10.2, "10/s"), (12345.0, "12,345/s")])
def test_rates(value, text):
    assert words.rate(value) == text


def test_a_plot_spans_its_box_and_ends_at_the_right():
    assert words.plot([], 60) == words.plot([5], 60) == ("", "")
    line, area = words.plot([0, 50, 100], 60)
    spots = [tuple(map(float, spot.split())) for spot in line.removeprefix("M").replace("\nL", " L").split(" L")]
    assert spots == [(232, 47), (236, 24), (240, 1)] and area == f"{line}\nV48 H232 Z"
    flat, _ = words.plot([0] * 100, 60)
    assert flat.startswith("M0 47.0 L4 47.0") and flat.endswith("240 47.0") and max(map(len, flat.split("\n"))) < 200


async def test_the_site_is_strict_and_complete(serve):
    service = await serve(HttpService, pages=site(reporter(), lambda: (b"up 1\n", "text/plain; version=0.0.4")))
    answer = await curl("--include", url(service, "/"))
    assert f"{POLICY[0]}: {POLICY[1]}\r\n".encode() in answer and b"unsafe" not in answer.partition(b"\r\n\r\n")[0]
    assert b"X-Content-Type-Options: nosniff\r\n" in answer and b"Cache-Control: no-store\r\n" in answer
    outline = Outline(answer.partition(b"\r\n\r\n")[2].decode())
    links = {attributes[name] for tag, attributes in outline.elements if tag in ("a", "link", "script")
             for name in ("href", "src") if attributes.get(name, "#")[0] != "#"}
    assert {link.partition("?")[0] for link in links} >= {"/metrics", "/status.json", "/status.css", "/status.js", "/icon.svg"}
    kinds = {"css": b"text/css", "js": b"text/javascript", "svg": b"image/svg+xml", "json": b"application/json"}
    for link in links:
        answer = await curl("--include", url(service, link))
        assert statuses(answer)[0] == 200, link
        kind = kinds.get(link.partition("?")[0].rpartition(".")[2], b"text/plain")
        assert b"Content-Type: " + kind in answer and b"nosniff" in answer
        assert (b"immutable" in answer) == (b"text/css" in answer or b"javascript" in answer or b"svg+xml" in answer)
    assert statuses(await curl("--include", "--data", "x=1", url(service, "/status.json"))) == [405]
