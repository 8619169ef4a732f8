"""Names from outside that become files."""

import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from datasets import files


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".", "", "a/b", "../evil", "/etc/passwd", ".hidden", "a\0b"),
        *("x\n", "\udcff", "x" * 300, "\u00e9" * 200, "a#b", "a%2fb", "C:\\x"),
    ],
)
def test_names_that_lead_elsewhere_are_changed(tmp_path, name):
    found = files.filename(name)
    assert found != name
    path = tmp_path / f"{found}.json"
    path.write_text("x")
    assert path.parent == tmp_path and path in tmp_path.iterdir()


@pytest.mark.parametrize(
    "name",
    ["bass_electronic_018-060-100", "sub-a", "Fl\u00f6te 2", "$x_y_z$", "v1.2"],
)
def test_names_that_will_do_stay(name):
    assert files.filename(name) == name


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
    names=st.lists(
        st.text(st.characters(codec=None), max_size=200),
        unique=True,
        max_size=4,
    )
)
def test_every_name_is_one_part_of_a_path_and_keeps_apart(names):
    found = [files.filename(name) for name in names]
    assert len(set(found)) == len(names)
    for name in found:
        assert pathlib.PurePath(name).parts == (name,)
        assert len(name.encode()) < 200 and name not in (".", "..")
        assert not name.startswith(".") and name.isprintable()
        assert files.filename(name) == name


def test_a_folder_names_only_what_is_below_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    assert files.inside(folder, "a/b.wav") == folder / "a/b.wav"
    for name in ("../secret", str(tmp_path / "secret"), "link", "a\0b"):
        with pytest.raises(ValueError, match="not below it"):
            files.inside(folder, name)
