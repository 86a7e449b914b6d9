"""Files that are written whole keep what belongs to their name: links, permissions."""

from __future__ import annotations

import os
import stat

import pytest

from maskguided.files import write_whole

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and permissions are those of POSIX")


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "there" / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    write_whole(link, lambda beside: beside.write_text("first"))
    assert real.read_text() == "first"
    write_whole(link, lambda beside: beside.write_text("second"))
    assert link.is_symlink()
    assert (real.read_text(), link.read_text()) == ("second", "second")
    assert [path.name for path in real.parent.iterdir()] == ["real.txt"]


def test_a_file_that_is_replaced_hands_on_its_permissions(tmp_path):
    target = tmp_path / "secret.txt"
    write_whole(target, lambda beside: beside.write_text("first"))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.chmod(0o600)
    write_whole(target, lambda beside: beside.write_text("second"))
    assert target.read_text() == "second"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
