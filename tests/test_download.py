import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vitrail import download
from vitrail.download import RemoteFile
from vitrail.errors import FileError

CONTENT = bytes(range(256)) * 5000  # 1.28 MB: two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A web server with one file; counts what was asked for, and can misbehave."""

    url: str
    content: bytes = CONTENT
    etag: str = '"first"'
    breaks_off_after: int | None = None  # bytes of each answer
    knows_ranges: bool = True
    status: int | None = None
    content_type: str = "application/octet-stream"
    shift: int = 0  # bytes by which a part begins too early
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if state.status:
                self.send_error(state.status)
                return
            start = 0
            if wanted and state.knows_ranges and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                start -= state.shift
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            body = state.content[start:]
            self.send_header("Content-Type", state.content_type)
            self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.breaks_off_after])

        def log_message(self, *_):
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http_server.server_port}/small.pth")
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http_server.shutdown()
    thread.join()
    http_server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def remote(url, sha256=None, notice=None):
    return RemoteFile("xcit_small_12_p16.test", url, "small.pth", sha256, notice)


def test_downloads_once_and_keeps_the_hash(server, cache):
    path = download.fetch(remote(server.url))
    assert path == cache / "small.pth"
    assert path.read_bytes() == CONTENT
    assert (cache / "small.pth.sha256").read_text() == f"{DIGEST}\n"
    assert download.fetch(remote(server.url, DIGEST)) == path
    assert download.fetch(remote(server.url, DIGEST[:8])) == path
    assert server.ranges == [None]


def test_notice_is_shown_once_when_the_file_is_fetched(server, capsys):
    file = remote(server.url, notice="For reading alone.")
    download.fetch(file)
    download.fetch(file)
    assert capsys.readouterr().err.count("For reading alone.") == 1


def test_goes_on_at_once_and_in_a_later_run(server, cache):
    server.breaks_off_after = 300_000
    with pytest.raises(FileError, match=r"broke off; 600,000 bytes are kept: run the same command again to go on\.$"):
        download.fetch(remote(server.url))
    assert (cache / "small.pth.part").read_bytes() == CONTENT[:600_000]
    assert not (cache / "small.pth").exists()
    server.breaks_off_after = None
    assert download.fetch(remote(server.url, DIGEST)).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert sorted(path.name for path in cache.iterdir()) == [".small.pth.lock", "small.pth", "small.pth.sha256"]


def test_a_complete_part_is_taken_as_it_is(server, cache):
    cache.mkdir()
    (cache / "small.pth.part").write_bytes(CONTENT)
    (cache / "small.pth.part.etag").write_text(server.etag)
    assert download.fetch(remote(server.url, DIGEST)).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_starts_over_when_the_file_has_changed_or_the_server_knows_no_ranges(server, cache, knows_ranges):
    server.breaks_off_after = 100_000
    with pytest.raises(FileError, match="broke off"):
        download.fetch(remote(server.url))
    server.breaks_off_after, server.knows_ranges = None, knows_ranges
    server.content, server.etag = CONTENT[::-1], '"second"'
    assert download.fetch(remote(server.url)).read_bytes() == CONTENT[::-1]


def test_starts_over_when_another_part_comes_than_was_asked_for(server):
    server.breaks_off_after = 100_000
    with pytest.raises(FileError, match="broke off"):
        download.fetch(remote(server.url))
    server.breaks_off_after, server.shift = None, 1000
    assert download.fetch(remote(server.url)).read_bytes() == CONTENT


def test_a_web_page_is_no_file(server, cache):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(FileError, match=r"answers with a web page instead of xcit_small_12_p16.test, as networks do"):
        download.fetch(remote(server.url))
    assert [path.name for path in cache.iterdir()] == [".small.pth.lock"]
    server.content_type = "application/octet-stream"
    assert download.fetch(remote(server.url)).read_bytes() == CONTENT


def test_wrong_hash_is_thrown_away(server, cache):
    with pytest.raises(FileError, match=f"SHA-256 {DIGEST}, but xcit_small_12_p16.test was published with 00ff00"):
        download.fetch(remote(server.url, "00ff00"))
    assert [path.name for path in cache.iterdir()] == [".small.pth.lock"]


def test_file_that_changes_after_its_first_use_is_refused(server, cache):
    path = download.fetch(remote(server.url))
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FileError, match=f"instead of {DIGEST}: it is damaged or another file; delete it and "):
        download.fetch(remote(server.url))
    with pytest.raises(FileError, match=r"anew, or .*small.pth.sha256 alone if it was you who put another there\.$"):
        download.fetch(remote(server.url))


def test_a_damaged_record_is_no_hash(server, cache):
    download.fetch(remote(server.url))
    (cache / "small.pth.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="it is damaged or another file"):
        download.fetch(remote(server.url))


def test_file_put_there_by_hand_is_checked_and_remembered(server, cache):
    cache.mkdir()
    (cache / "small.pth").write_bytes(CONTENT)
    with pytest.raises(FileError, match=r"instead of abc: .* delete it to download xcit_small_12_p16.test anew"):
        download.fetch(remote(server.url, "abc"))
    assert download.fetch(remote(server.url)).read_bytes() == CONTENT
    assert (cache / "small.pth.sha256").read_text() == f"{DIGEST}\n"
    assert server.ranges == []


def test_a_cache_that_others_have_filled_need_not_be_writable(cache, monkeypatch):
    def refuse(path, *_):
        raise FileError(f"Cannot write {path}: Permission denied.")

    monkeypatch.setattr(download, "FileLock", refuse)
    monkeypatch.setattr(download, "write_text", refuse)
    cache.mkdir()
    (cache / "small.pth").write_bytes(CONTENT)
    assert download.fetch(remote("http://127.0.0.1:1/small.pth")) == cache / "small.pth"
    assert [path.name for path in cache.iterdir()] == ["small.pth"]


def test_missing_on_the_server(server):
    server.status = 404
    with pytest.raises(FileError, match=r"answers 404 Not Found instead of xcit_small_12_p16.test; download it on"):
        download.fetch(remote(server.url))


def test_offline_says_what_to_do(cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/small.pth"
        with pytest.raises(FileError) as caught:
            download.fetch(remote(url))
    assert str(caught.value) == (
        f"Cannot reach {url} for xcit_small_12_p16.test (Connection refused); "
        f"download it on another machine and put it at {cache / 'small.pth'}."
    )


def test_a_proxy_that_is_none_says_so(monkeypatch):
    monkeypatch.setenv("http_proxy", "not a host")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(FileError, match=r"^Cannot reach http://example.invalid/a for xcit_small_12_p16.test \("):
        download.fetch(remote("http://example.invalid/a"))


def test_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        FileError, match=r"^Cannot store xcit_small_12_p16.test as .*; mend that or set VITRAIL_CACHE\.$"
    ):
        download.fetch(remote(server.url))


def test_two_at_once_share_one_download(server):
    """Threads here, for time; the lock is the operating system's on the file, and the same between processes."""
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(download.fetch, [remote(server.url)] * 4))
    assert server.ranges == [None]
    assert {path.read_bytes() for path in paths} == {CONTENT}


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE", "/somewhere")
    assert str(download.cache_folder()) == "/somewhere"
    monkeypatch.delenv("VITRAIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "vitrail"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "vitrail"
