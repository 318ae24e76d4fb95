"""What verbs share: lists of files, tables."""

import io
from pathlib import Path

from vitrail.cli.inputs import places, print_table


def test_a_list_may_end_its_lines_as_windows_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd\r").touch()
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\r\nodd\r\n\r\nb c.png\n"))
    assert list(places(["-"])) == [Path("a.png"), Path("odd\r"), Path("b c.png")]


def test_tables_are_aligned(capsys):
    print_table(("file", "number", "mixed"), [("a", "-0.123", "-"), ("long", "12", "3"), ("c", "", "4")])
    assert capsys.readouterr().out.splitlines() == [
        "file  number  mixed",
        "a     -0.123  -",
        "long      12  3",
        "c             4",
    ]


def test_a_row_is_one_line(capsys):
    print_table(("file", "number"), [("a\nb\x1b[1m", "1"), ("é", "2")])
    assert capsys.readouterr().out.split("\n") == [
        "file         number",
        r"a\nb\x1b[1m       1",
        "é                 2",
        "",
    ]
