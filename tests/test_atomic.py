import os

import pytest

from tinycifar import atomic


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    atomic.write_json(path, {"accuracy": 0.5})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_json(path, {"accuracy": 0.6})
    assert atomic.read_json(path) == {"accuracy": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), ("{", "is not valid JSON")])
def test_a_missing_or_broken_json_file_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"recipe.json {message}"):
        atomic.read_json(path)
