"""Published weights by name: the table, and downloading from a server on the loopback interface."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path

import published
import pytest
import torch

from yolo_lightbackbones.card import Release
from yolo_lightbackbones.checkpoints import releases, sources

OFFICIAL = "https://github.com/THU-MIG/RepViT/releases/download/v1.0"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, by path, and counts requests; HEAD and GET, with the headers of the Hugging Face hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.cut_off = 0
        self.etag: str | None = None
        self.requests = 0
        self.redirects: dict[str, str] = {}
        self.closing = threading.Event()

    def stop(self) -> None:
        """From now on connections are refused."""
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.requests += 1
        if self.path in {"/silent", "/drip", "/endless"}:
            self.misbehave()
            return
        if target := self.server.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        content = self.server.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{self.server.etag or hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) - self.server.cut_off])

    def misbehave(self) -> None:
        """Say nothing, one byte now and then, or more and more, until the server closes or the client goes."""
        if self.path == "/silent":
            self.server.closing.wait(20)
            return
        self.send_response(200)
        self.end_headers()
        chunk, pause = (b"x", 0.05) if self.path == "/drip" else (bytes(10_000), 0)
        with contextlib.suppress(OSError):
            while not self.server.closing.wait(pause):
                self.wfile.write(chunk)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads, an empty one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


def checkpoint(value: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.full((1000,), value)}}, buffer)
    return buffer.getvalue()


def released(server: Server, content: bytes, *, known: bool) -> Release:
    server.content["/w.pth"] = content
    sha256 = hashlib.sha256(content).hexdigest() if known else None
    return Release("w", f"{server.address}/w.pth", "w.pth", sha256=sha256)


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("repvit_m0_6", f"{OFFICIAL}/repvit_m0_6_distill_300e.pth"),
        ("repvit_m0_9", f"{OFFICIAL}/repvit_m0_9_distill_450e.pth"),
        ("repvit_m0.9", f"{OFFICIAL}/repvit_m0_9_distill_450e.pth"),
        ("repvit_m2_3", f"{OFFICIAL}/repvit_m2_3_distill_450e.pth"),
        ("repvit_m1_0_distill_300e", f"{OFFICIAL}/repvit_m1_0_distill_300e.pth"),
        ("repvit_m1_0_distill_300e.pth", f"{OFFICIAL}/repvit_m1_0_distill_300e.pth"),
        (
            "repvit_m1_5.dist_300e_in1k",
            "https://huggingface.co/timm/repvit_m1_5.dist_300e_in1k/resolve/main/model.safetensors",
        ),
    ],
)
def test_names(name: str, url: str) -> None:
    assert releases.find(name).url == url


def test_every_repvit_variant_has_a_short_name() -> None:
    from yolo_lightbackbones import list_backbones

    assert set(list_backbones("repvit")) <= set(releases.by_name())


def test_timm_names_are_those_that_timm_has() -> None:
    timm = pytest.importorskip("timm")
    pretrained = set(timm.list_models("repvit_m*", pretrained=True))
    ours = {name for name in releases.by_name() if ".dist_" in name}
    first_version = {"repvit_m1.dist_in1k", "repvit_m2.dist_in1k", "repvit_m3.dist_in1k"}
    assert ours == pretrained - first_version


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("edgevit_xxs", "No EdgeViT weights were ever released"),
        ("edgevit", "No EdgeViT weights were ever released"),
        ("parcnet_s", r"github\.com/hkzhang91/ParC-Net"),
        ("conv2former_b", r"github\.com/HVision-NKU/Conv2Former"),
        ("repvit_m09", r"neither a file nor the name .*Did you mean 'repvit_m0_9'\?.*repvit_m2_3\.dist_450e_in1k"),
    ],
)
def test_names_without_an_address(name: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        releases.find(name)


# --- downloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_download_once_then_from_the_cache(server: Server, cache: Path, known: bool) -> None:
    content = checkpoint()
    release = released(server, content, known=known)

    path = sources.fetch(release, progress=False)
    assert path == cache / "w.pth"
    assert path.read_bytes() == content
    assert server.requests == 1

    server.content.clear()
    assert sources.fetch(release, progress=False) == path
    assert server.requests == 1
    assert sorted(file.name for file in cache.iterdir()) == (["w.pth"] if known else ["w.pth", "w.pth.sha256"])


def test_recorded_checksum_is_the_files(server: Server, cache: Path) -> None:
    content = checkpoint()
    sources.fetch(released(server, content, known=False), progress=False)
    assert (cache / "w.pth.sha256").read_text().strip() == hashlib.sha256(content).hexdigest()


def test_progress_is_shown(server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources.fetch(released(server, checkpoint(), known=True))
    assert "100%" in capsys.readouterr().err


def test_wrong_content_is_not_kept(server: Server, cache: Path) -> None:
    release = released(server, checkpoint(1.0), known=True)
    server.content["/w.pth"] = checkpoint(2.0)
    with pytest.raises(OSError, match=rf"SHA-256 is [0-9a-f]{{64}}, it should be {release.sha256}"):
        sources.fetch(release, progress=False)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b""])
def test_page_instead_of_weights_is_not_kept(server: Server, cache: Path, content: bytes) -> None:
    with pytest.raises(OSError, match=r"w could not be downloaded: .* is (not a checkpoint|an empty file)"):
        sources.fetch(released(server, content, known=False), progress=False)
    assert list(cache.iterdir()) == []


def test_cut_off_download_is_not_kept(server: Server, cache: Path) -> None:
    release = released(server, checkpoint(), known=False)
    server.cut_off = 500
    with pytest.raises(OSError, match="w could not be downloaded"):
        sources.fetch(release, progress=False)
    assert list(cache.iterdir()) == []


def test_missing_file_says_what_to_fetch_and_where_to_put_it(server: Server, cache: Path) -> None:
    release = Release("w", f"{server.address}/gone.pth", "w.pth")
    with pytest.raises(OSError, match="HTTP Error 404") as caught:
        sources.fetch(release, progress=False)
    assert f"Fetch {release.url}" in str(caught.value)
    assert f"put it here as {cache / 'w.pth'}" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_no_network_says_what_to_fetch_and_where_to_put_it(server: Server, cache: Path) -> None:
    release = released(server, checkpoint(), known=True)
    server.stop()
    with pytest.raises(OSError, match=r"w could not be downloaded: .*refused") as caught:
        sources.fetch(release, progress=False)
    assert f"Fetch {release.url}" in str(caught.value)
    assert f"put it here as {cache / 'w.pth'}" in str(caught.value)


def test_file_put_into_the_cache_by_hand_is_taken(server: Server, cache: Path) -> None:
    content = checkpoint()
    release = released(server, content, known=True)
    cache.mkdir(parents=True)
    (cache / "w.pth").write_bytes(content)
    assert sources.fetch(release) == cache / "w.pth"
    assert server.requests == 0


@pytest.mark.parametrize("known", [True, False])
def test_file_that_changed_in_the_cache_is_refused(server: Server, cache: Path, known: bool) -> None:
    release = released(server, checkpoint(1.0), known=known)
    path = sources.fetch(release, progress=False)
    path.write_bytes(checkpoint(2.0))
    with pytest.raises(OSError, match=r"w\.pth has the SHA-256 .*damaged or replaced\. Delete it"):
        sources.fetch(release, progress=False)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/silent", "timed out"),
        ("/drip", "sends fewer than 1,000 bytes in a second"),
        ("/endless", "bytes or more; at most 100,000 are taken"),
        ("/large.pth", "200,000 bytes or more; at most 100,000 are taken"),
    ],
)
def test_servers_that_would_never_end(
    path: str, match: str, *, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    monkeypatch.setattr(sources, "LARGEST", 100_000)
    server.content["/large.pth"] = bytes(200_000)
    start = time.monotonic()
    with pytest.raises(OSError, match=rf"w could not be downloaded: .*{match}\. Fetch .* put it here as"):
        sources.fetch(Release("w", server.address + path, "w.pth"), progress=False)
    assert time.monotonic() - start < 5
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.com/w.pth", "ftp://127.0.0.1/w.pth", "file:///etc/hostname"])
def test_addresses_without_encryption_are_not_even_asked(
    url: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a connection"))
        with pytest.raises(OSError, match=r"is not https"):
            sources.fetch(Release("w", url, "w.pth"), progress=False)
    server.redirects["/w.pth"] = url
    with pytest.raises(OSError, match=r"is not https|Redirection to .* is not allowed"):
        sources.fetch(Release("w", f"{server.address}/w.pth", "w.pth"), progress=False)
    assert server.requests == 1
    assert list(cache.iterdir()) == []


def test_redirects_stay_where_they_may(server: Server, cache: Path) -> None:
    release = released(server, checkpoint(), known=True)
    server.redirects = {
        "/here.pth": f"{server.address}/w.pth",
        "/elsewhere.pth": f"{server.address}/w.pth".replace("127.0.0.1", "localhost"),
        "/far.pth": "https://example.com/w.pth",
    }
    for path, host in (("/elsewhere.pth", "localhost"), ("/far.pth", "example.com")):
        before = server.requests
        with pytest.raises(OSError, match=rf"127\.0\.0\.1 redirects to '{host}', which is not one of 127\.0\.0\.1"):
            sources.fetch(Release("w", server.address + path, "w.pth", sha256=release.sha256), progress=False)
        assert server.requests == before + 1
    found = sources.fetch(Release("w", f"{server.address}/here.pth", "w.pth", sha256=release.sha256), progress=False)
    assert found.read_bytes() == checkpoint()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("github.com", True),
        ("release-assets.githubusercontent.com", True),
        ("objects.githubusercontent.com", True),
        ("raw.githubusercontent.com", False),
        ("github.com.example.org", False),
        ("github.com@example.org", False),
    ],
)
def test_where_github_may_send_us(host: str, allowed: bool) -> None:
    request = urllib.request.Request(releases.find("repvit_m0_9").url)
    arguments = (request, io.BytesIO(), 302, "Found", HTTPMessage(), f"https://{host}/file?token=1")
    if allowed:
        assert sources._WithinHosts().redirect_request(*arguments) is not None
    else:
        with pytest.raises(OSError, match=r"github\.com redirects to"):
            sources._WithinHosts().redirect_request(*arguments)


def test_what_is_said_of_checksums_is_what_the_table_has() -> None:
    for release in releases.by_name().values():
        published = "published one" in sources.assurance(release)
        assert published == bool(release.sha256)
        assert ("hub states" in sources.assurance(release)) == (release.repo_id is not None)
        assert published or release.repo_id or "nobody has published" in sources.assurance(release)


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release in a hub on loopback."""
    hub = pytest.importorskip("huggingface_hub")
    content = checkpoint()
    server.content["/timm/w/resolve/main/model.safetensors"] = content
    original = hub.hf_hub_download

    def download(repo_id: str, filename: str, *, etag_timeout: float) -> str:
        path: str = original(
            repo_id, filename, endpoint=server.address, cache_dir=tmp_path / "hf", etag_timeout=etag_timeout
        )
        return path

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return Release("w", f"{server.address}/timm/w/resolve/main/model.safetensors", "w.safetensors", repo_id="timm/w")


def test_hub_download(hub: Release, server: Server) -> None:
    path = sources.fetch(hub)
    assert path.read_bytes() == checkpoint()
    assert path.name == "model.safetensors"
    server.content.clear()
    assert sources.fetch(hub) == path


def test_hub_download_is_checked(hub: Release, server: Server) -> None:
    server.etag = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(OSError, match=r"not what the hub says it is .*Delete it"):
        sources.fetch(hub)


def test_hub_without_network(hub: Release, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits longer before each of its tries
    server.stop()
    with pytest.raises(OSError, match="w could not be downloaded") as caught:
        sources.fetch(hub)
    assert f"Fetch {hub.url}" in str(caught.value)
    assert f"put it here as {cache / 'w.safetensors'}" in str(caught.value)


def test_hub_file_put_into_the_cache_by_hand(hub: Release, server: Server, cache: Path) -> None:
    from safetensors.torch import save_file

    cache.mkdir(parents=True)
    save_file(published.make_state({"a.weight": (3, 3)}), cache / "w.safetensors")
    assert sources.fetch(hub) == cache / "w.safetensors"
    assert server.requests == 0


def test_hub_needs_its_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r"needs the package huggingface_hub.*pip install huggingface_hub"):
        sources.fetch(releases.find("repvit_m0_9.dist_450e_in1k"))
