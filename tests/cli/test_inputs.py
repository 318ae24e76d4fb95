"""What verbs share: tables."""

from vitrail.cli.inputs import print_table


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
