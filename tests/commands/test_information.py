from pathlib import Path

import numpy as np
from PIL import Image


def shots(folder: Path, people: int = 10) -> Path:
    """Pictures of two classes named PERSON_SHOT.png, three of each person."""
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for index in range(3 * people):
            picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
            picture.convert("L" if index % 3 == 0 else "RGB").save(folder / kind / f"{kind}{index // 3}_{index}.png")
    return folder


def test_info_describes_layout_splits_sizes_and_modes_and_draws_samples(tinycifar, tmp_path):
    own = shots(tmp_path / "own")
    found = tinycifar("data", "info", "--data", own, "--plot", "drawn/samples.png", "--json").json
    assert found["layout"] == "folders of classes"
    assert (found["train_images"], found["test_images"], found["problem"]) == (48, 12, None)
    assert (found["shorter_sides"], found["longer_sides"]) == ([20, 20], [24, 24])
    assert found["modes"] == ["RGB 40", "L 20"]
    assert (found["train_images_by_class"], found["test_images_by_class"]) == ([24, 24], [6, 6])
    assert found["near_duplicates"] == ["0 of the 12 test images"]
    with Image.open("drawn/samples.png") as drawn:
        assert min(drawn.size) > 200
        assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 1_000
    refused = tinycifar("data", "info", "--data", own, "--plot", "drawn/samples.png")
    assert (refused.code, refused.out) == (2, "")
    assert "drawn/samples.png exists already; name another output, or pass --overwrite" in refused.err
    assert tinycifar("data", "info", "--data", own, "--plot", "drawn/samples.png", "--overwrite").code == 0


def test_info_describes_data_that_is_too_small_to_be_trained_on(tinycifar, tmp_path):
    np.savez(tmp_path / "own.npz", train_images=np.zeros((4, 28, 28), np.uint8), train_labels=np.zeros((4, 1), int))
    found = tinycifar("data", "info", "--data", tmp_path / "own.npz", "--json").json
    assert (found["layout"], found["train_images"], found["classes"]) == ("NumPy arrays, grey 28x28", 4, ["0"])
    assert found["problem"].endswith("own.npz has 1 class; allowed are 2 to 1,000")
    refused = tinycifar("data", "info", "--data", tmp_path / "own.npz", "--plot", "samples.png")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "nothing to draw" in refused.err


def test_info_shows_names_of_classes_that_cannot_be_printed_with_escapes(tinycifar, tmp_path):
    own = shots(tmp_path / "own")
    lines = [f"{path.relative_to(own)},{path.parent.name}\x1b[31m" for path in own.rglob("*.png")]
    (own / "labels.csv").write_text("\n".join(["file,label", *lines]))
    shown = tinycifar("data", "info", "--data", own)
    assert (shown.code, "\x1b" in shown.out) == (0, False)
    assert "classes: cat\\x1b[31m, dog\\x1b[31m" in shown.out


def test_a_source_and_an_option_do_not_say_the_same_twice(tinycifar, tmp_path):
    own = shots(tmp_path / "own")
    refused = tinycifar("data", "info", "--data", f"{own}?group=(.*)_", "--group", "(.*)_1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "group is given twice, in --data and as --group; give it once" in refused.err


def test_info_names_unreadable_pictures_as_a_problem_unless_they_are_to_be_skipped(tinycifar, tmp_path):
    own = shots(tmp_path / "own")
    (own / "cat" / "damaged.png").write_bytes(b"no picture")
    found = tinycifar("data", "info", "--data", own, "--json").json
    assert found["problem"] == "1 picture cannot be read: train needs --skip-unreadable"
    assert (found["train_images"], found["test_images"]) == (48, 12)
    assert tinycifar("data", "info", "--data", own, "--skip-unreadable", "--json").json["problem"] is None


def test_groups_hold_for_a_run_and_where_it_is_resumed_and_evaluated(tinycifar, tmp_path):
    own = shots(tmp_path / "own")
    words = ["--data", own, "--group", r"(.*)_\d+", "--epochs", "2", "--set", "validation_images=9"]
    assert tinycifar("train", *words, "--out", "run", "--stop-after-epoch", "1").code == 0
    resumed = tinycifar("train", "--resume", "run")
    assert resumed.code == 0
    assert "20 groups, none of which lies on both sides of a split" in resumed.out
    assert tinycifar("evaluate", "run", "--json").json["split"] == "validation"
