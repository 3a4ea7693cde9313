"""Progress without a terminal: a line now and then, on stderr, with rate and remaining time."""

from __future__ import annotations

import featurize.progress
from featurize.progress import progress_bar


def test_lines_have_rate_and_remaining_time(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 12.0, 15.0, 25.0, 26.0])
    monkeypatch.setattr(featurize.progress.time, "monotonic", lambda: next(clock))
    with progress_bar("toy", "segments") as update:
        for done in (1, 15, 20, 41, 50):  # at 5, 12, 15, 25 and 26 s; the first 5 s are start-up
            update(done, 50)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "toy: 15 of 50 segments, 2.0/s, about 18 s left",
        "toy: 41 of 50 segments, 2.0/s, about 4 s left",
    ]
