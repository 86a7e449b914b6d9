"""What a terminal shows when a command is done: it is drawn over, so plain output does not tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from skimage import data

from maskguided.commands.console import warning
from maskguided.imaging.images import write_image

pty = pytest.importorskip("pty", reason="needs a terminal of Unix")


def screen(*arguments: object) -> list[str]:
    """The lines that are left on a terminal by a command of maskguided, run in one."""
    terminal, of_command = pty.openpty()
    command = [sys.executable, "-m", "maskguided", *map(str, arguments)]
    shown_as = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=of_command, stdout=of_command, stderr=of_command, env=shown_as)
    os.close(of_command)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # it is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert process.wait() == 0, written.decode()
    return shown(written.decode())


def shown(written: str) -> list[str]:
    """Text with the codes that rich uses, as a terminal shows it."""
    lines, row, column = [""], 0, 0
    for code, up, text in re.findall("(\x1b\\[(\\d*)A|\x1b\\[[?\\d;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", written):
        if text:
            lines[row] = lines[row][:column] + text + lines[row][column + len(text) :]
            column += len(text)
        elif code.endswith("A"):
            row -= int(up or 1)
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code == "\r":
            column = 0
        elif code == "\n":
            row += 1
            lines += [""] * (row == len(lines))
    return [line for line in lines if line]


def test_a_terminal_is_read_as_it_shows():
    assert shown("one\r\ntwo\r\x1b[2K\x1b[1A\x1b[2Kthree\r\n\x1b[31mfour\x1b[0m") == ["three", "four"]


def test_all_results_stay_on_the_screen_and_no_bar(tmp_path):
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png", data.astronaut()[:64, :64].copy())
    left = screen("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out")
    assert [line.split(" -> ")[0] for line in left] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("path", [r"C:\photos\[raw]\a.png", r"C:\[/b]\a.png", "[raw]/a.png"])
def test_names_that_look_like_markup_are_shown_as_they_are(capsys, path):
    warning(path)
    assert capsys.readouterr().err == f"warning: {path}\n"
