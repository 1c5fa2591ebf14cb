"""What people see in a log and on a terminal, and the check of the output folder."""

import os
from pathlib import Path

import pytest

from grun.errors import ConfigError
from pipelines import console


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes both consoles believe that they are on a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


class TestConsole:
    def test_summary_in_a_log_is_literal_and_unbroken(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = "/".join(["a long folder"] * 20)
        console.summary("run [red]x[/red]", {"adapter": path, "loss [b]": ":key:"}, ["do this"])
        assert capsys.readouterr() == (f"run [red]x[/red]\n  adapter   {path}\n  loss [b]  :key:\nnext: do this\n", "")

    @pytest.mark.usefixtures("terminal")
    def test_summary_on_a_terminal_is_literal(self, capsys: pytest.CaptureFixture[str]) -> None:
        console.summary("run [red]x[/red]", {"loss [b]": ":key: [/]"}, ["do [this]"])
        shown = capsys.readouterr().out
        for text in ("run [red]x[/red]", "loss [b]", ":key: [/]", "do [this]"):
            assert text in shown

    def test_progress_in_a_log_is_a_line_for_every_tenth(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.progress("training [x]", 200) as advance:
            for _ in range(200):
                advance(1)
        output, lines = capsys.readouterr()
        assert output == ""
        assert [line.split(" after ")[0] for line in lines.splitlines()] == [
            f"training [x]: {10 * tenth} % ({20 * tenth}/200)" for tenth in range(1, 11)
        ]

    def test_a_leap_is_one_line_and_no_work_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.progress("training", 8) as advance:
            advance(5)
            advance(9)
        with console.progress("nothing", 0) as advance:
            advance(1)
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(" after ")[0] for line in lines] == ["training: 60 % (5/8)", "training: 100 % (8/8)"]

    @pytest.mark.usefixtures("terminal")
    def test_progress_on_a_terminal_lets_notes_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.progress("sweep [x]", 4) as advance:
            advance(3)
            console.note("trial [1] is done")
            advance(1)
        shown = capsys.readouterr().err
        assert "trial [1] is done" in shown
        assert "sweep [x]" in shown
        assert "4/4" in shown


class TestCheckWritable:
    def test_leaves_nothing_behind(self, tmp_path: Path) -> None:
        console.check_writable(tmp_path / "a" / "b")
        console.check_writable(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("below", ["", "x", "x/y"])
    def test_a_file_in_the_way(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("kept", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"`output` must be a folder .*file.* \(Not a directory\); choose another"):
            console.check_writable(tmp_path / "file" / below)
        assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"

    def test_a_link_to_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        with pytest.raises(ConfigError, match="link"):
            console.check_writable(tmp_path / "link")

    def test_a_name_that_no_folder_can_have(self, tmp_path: Path) -> None:
        for name in ("x" * 300, "x\0y"):
            with pytest.raises(ConfigError, match="`output` must be a folder"):
                console.check_writable(tmp_path / name)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where not even root can write")
    def test_where_not_even_root_can_write(self) -> None:
        with pytest.raises(ConfigError, match="'/proc/outputs/x'"):
            console.check_writable(Path("/proc/outputs/x"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
    def test_a_folder_without_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match="Permission denied"):
            console.check_writable(tmp_path / "x")
        tmp_path.chmod(0o700)
