"""Numbers for people."""

import pytest

from grun.evaluation.wording import count_of, duration, megabytes, number, per_cent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.041, "4.1 %"),
        (0.05, "5 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (1.004, "100.4 %"),
        # what is not nothing is not shown as nothing, and what is not all is not shown as all
        (0.0004, "under 0.1 %"),
        (0.9996, "over 99.9 %"),
        (0.9994, "99.9 %"),
        (None, "not known"),
    ],
)
def test_per_cent(share: float | None, text: str) -> None:
    assert per_cent(share) == text


def test_a_rate_becomes_the_count_that_it_was_made_from() -> None:
    assert count_of(1 / 164, 164) == "1 of 164"
    assert count_of(1.0, 1200) == "1,200 of 1,200"


def test_numbers_and_sizes() -> None:
    assert [number(value) for value in (0.99871, 12, 3_412_480, -4.49, None)] == [
        "0.9987",
        "12",
        "3,412,480",
        "-4.49",
        "not known",
    ]
    assert number(1.1e-19) == "1.1 \u00d7 10\u207b\u00b9\u2079"
    assert [megabytes(n) for n in (14_210, 48_300_000, None)] == ["14.2 kB", "48.3 MB", "not known"]
    assert [duration(s) for s in (93.4, 600.0, 9000.0, None)] == ["93 s", "10 min", "2.5 h", "not known"]
