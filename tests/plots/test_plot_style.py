"""The look of a method, and the files of a figure."""

import itertools
import subprocess
import sys

import matplotlib
import pytest
from matplotlib.figure import Figure

from fedkd.errors import FedkdError
from fedkd.plots.style import PLACES, look, save


def test_methods_of_the_field_all_look_different():
    named = [name for name in PLACES if name]  # empty places are arms' looks
    looks = [
        (style["color"], style["marker"], str(style["linestyle"])) for style in map(look, named)
    ]
    assert len(set(looks)) == len(named)


def test_the_first_eight_methods_differ_in_colour_alone():
    assert len({look(method)["color"] for method in PLACES[:8]}) == 8


def test_a_users_own_method_never_looks_like_one_of_the_field():
    own = look("my_own")
    assert own["markerfacecolor"] == "white"
    assert all(look(method)["markerfacecolor"] != "white" for method in PLACES)


def test_a_users_own_method_looks_the_same_in_every_process():
    script = "from fedkd.plots.style import look; print(look('my_own'))"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == str(look("my_own"))


def test_variants_of_a_method_share_its_colour_and_nothing_else():
    styles = [look("knfu", variant) for variant in range(4)]
    for one, other in itertools.combinations(styles, 2):
        assert one["color"] == other["color"]
        assert one["marker"] != other["marker"]
        assert one["linestyle"] != other["linestyle"]


def test_a_figure_is_written_as_png_and_pdf_with_truetype(tmp_path):
    figure = Figure()
    figure.add_subplot(xlabel="Round").plot([1, 2], [3, 4])
    png, pdf = save(figure, tmp_path / "new" / "beta-0.5")
    assert (png.name, pdf.name) == ("beta-0.5.png", "beta-0.5.pdf")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()


def test_a_suffix_that_was_given_is_not_doubled(tmp_path):
    assert [file.name for file in save(Figure(), tmp_path / "a.pdf")] == ["a.png", "a.pdf"]


def test_the_same_figure_is_written_as_the_same_bytes(tmp_path):
    def written(name):
        figure = Figure()
        figure.add_subplot().plot([1, 2], [3, 4])
        return [file.read_bytes() for file in save(figure, tmp_path / name)]

    assert written("a") == written("b")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedkdError, match="cannot be written"):
        save(Figure(), tmp_path / "file" / "figure")


def test_drawing_leaves_matplotlibs_settings_as_they_were(tmp_path):
    before = matplotlib.rcParams.copy()
    save(Figure(), tmp_path / "a")
    assert matplotlib.rcParams.copy() == before
