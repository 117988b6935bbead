"""What a script makes of a mistake: one sentence and an exit status."""

from __future__ import annotations

import pytest

from gid_cuda.errors import UserError, told_in_one_sentence


@pytest.mark.parametrize(
    ("problem", "status", "sentence"),
    [
        (UserError("no such file: give another"), 2, "error: no such file: give another"),
        (OSError(28, "No space left on device", "runs/last.pt"), 2, "error: runs/last.pt: No space left on device;"),
        (OSError("broken pipe"), 2, "error: broken pipe;"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_users_mistake(
    capsys: pytest.CaptureFixture[str], problem: BaseException, status: int, sentence: str
) -> None:
    with pytest.raises(SystemExit) as exit_, told_in_one_sentence():
        raise problem
    assert exit_.value.code == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(sentence)


def test_a_mistake_of_the_code_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="ours"), told_in_one_sentence():
        raise ValueError("ours")


def test_a_terminal_is_told_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), told_in_one_sentence():
        raise UserError("no file \x1b[2J\x1b[31mred\x07\u202e\ud800 here\nand there")
    assert capsys.readouterr().err == "error: no file \\x1b[2J\\x1b[31mred\\x07\\u202e\\ud800 here\nand there\n"
