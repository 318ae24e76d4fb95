import errno
import os
import stat
from pathlib import Path

import pytest

from vitrail.errors import FileError
from vitrail.files import atomic_path, check_writable, remove_unfinished, write_text


def test_a_file_appears_whole_with_usual_permissions(tmp_path):
    target = tmp_path / "new" / "file.txt"
    write_text(target, "é")
    assert target.read_bytes() == "é".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".txt"
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"] and target.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"Cannot write .*file/inside\.txt: a file stands where its folder should be; "):
        write_text(tmp_path / "file" / "inside.txt", "")


def test_a_folder_is_not_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"Cannot write .*folder: it is a folder; give the name of a file"):
        write_text(tmp_path / "folder", "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(FileError, match=r"Cannot write .*file: No space left on device; make room"),
        atomic_path(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "new" / "folder" / "file"):
        check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileError, match=r"Cannot write .*: it is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(FileError, match=r"Cannot write .*file/a/b: a file stands where its folder should be; "):
        check_writable(tmp_path / "file" / "a" / "b")
    with pytest.raises(FileError, match=r"Cannot write /proc/new/file: .*; make room, or choose a folder"):
        check_writable("/proc/new/file")


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path):
    kept = {".DS_Store", ".env.template", "last.safetensors", ".lock", ".config.template.json", "a.abcdefgh.txt"}
    for name in kept:
        (tmp_path / name).touch()
    for name in ("last.safetensors", "step_00000010.safetensors", "no suffix"):
        with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / name) as temporary:
            os.link(temporary, tmp_path / "left")
            raise KeyboardInterrupt
        (tmp_path / "left").rename(temporary)
    assert len(list(tmp_path.iterdir())) == len(kept) + 3
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_unfinished(tmp_path / "nowhere")


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    for link, target in (("link.txt", "real.txt"), ("dangling.txt", "new.txt")):
        (tmp_path / link).symlink_to(target)
        write_text(tmp_path / link, "new")
        assert (tmp_path / link).is_symlink() and (tmp_path / target).read_text() == "new"


@pytest.mark.parametrize("write", [check_writable, lambda path: write_text(path, "text")])
def test_devices_and_pipes_are_no_files(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(FileError, match=r"^Cannot write .*: it is a device or a pipe; give the name of a file\.$"):
            write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


def test_names_of_the_greatest_length(tmp_path):
    write_text(tmp_path / ("a" * 251 + ".txt"), "text")
    assert len(list(tmp_path.iterdir())) == 1
