import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from conftest import wait_for
from tinycifar import atomic, data, recipes, run, training, typed
from tinycifar.recipes import Recipe
from tinycifar.sweep import outcome as sweep_outcome
from tinycifar.sweep import ranges, search
from tinycifar.sweep import study as sweep_study
from tinycifar.sweep import trials as sweep_trials
from tinycifar.sweep.ranges import Range
from tinycifar.sweep.study import Study, Trial
from tinycifar.training import Result

pytestmark = pytest.mark.usefixtures("undrawn")

RECIPE = replace(
    recipes.get("minute"), max_learning_rate=0.5, epochs=4, image_size=16, width=0.5, batch_size=20, precision="float32"
)
VARY = ("learning_rate=0.01:10:log", "label_smoothing=0:0.2", "nesterov=true,false")
STATES = ("complete", "pruned", "diverged")


def tiny() -> data.Dataset:
    whole = data.sample(16)
    return replace(whole.limit(60), test_images=whole.test_images[:20], test_labels=whole.test_labels[:20])


def study_in(out: Path, recipe: Recipe = RECIPE, vary: tuple[str, ...] = VARY, **options: Any) -> Study:
    return sweep_study.create(recipe, ranges.parse(vary, recipe), tiny(), out=out, **options)


def entries_of(study: Study) -> list[Trial]:
    return search.entries(study, search.open_study(study))


def run_search(study: Study, trials: int) -> list[Trial]:
    return list(search.search(study, tiny(), trials=trials, device="cpu"))


def states(trials: list[Trial]) -> list[str]:
    return [trial.state for trial in trials]


def without_seconds(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, train_seconds=None, run="") for trial in trials]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Trainings that only write what they come to: the better, the nearer the rate is to 0.5; diverged above 5."""
    called: list[tuple[str, int]] = []

    def train(recipe: Recipe, dataset: data.Dataset, **options: Any) -> Result:
        directory: Path = options["resume"] or options["out"]
        stop = options["stop_after_epoch"]
        called.append((directory.name, stop))
        if recipe.max_learning_rate > 5:
            raise FloatingPointError("the loss is nan\nand more")
        directory.mkdir(parents=True, exist_ok=True)
        atomic.write_json(directory / "recipe.json", {})
        accuracy = 0.9 - abs(recipe.max_learning_rate - 0.5) / 10
        history = [
            {"epoch": epoch, "validation_accuracy": accuracy * epoch / recipe.epochs, "train_seconds": 1.0}
            for epoch in range(1, stop + 1)
        ]
        run.rewrite_metrics(directory, history)
        return Result(directory, {"validation_accuracy": history[-1]["validation_accuracy"]}, True, None)

    monkeypatch.setattr(training, "train", train)
    return called


# --- ranges -------------------------------------------------------------------------------------------------------


def test_ranges_are_read_as_the_fields_types():
    texts = ["learning_rate=0.01:1:log", "batch_size=32:64", "nesterov=true,false", "epochs=2,4"]
    parsed = ranges.parse(texts, RECIPE)
    assert parsed == (
        Range("max_learning_rate", "float", (0.01, 1.0), True),
        Range("batch_size", "int", (32, 64)),
        Range("nesterov", "choice", (True, False)),
        Range("epochs", "choice", (2, 4)),
    )
    content = json.loads(json.dumps(typed.to_json(parsed)))
    assert tuple(typed.from_json(Range, item, "ranges") for item in content) == parsed
    assert ranges.parse(map(str, parsed), RECIPE) == parsed


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([], "FIELD=LOW:HIGH:log"),
        (["learning_rate"], "FIELD=A,B,C, not 'learning_rate'"),
        (["rate=1:2"], "rate is no field of a recipe; allowed are: model"),
        (["validation_images=1:2"], "validation_images cannot be varied"),
        (["watch_test=true,false"], "cannot be varied"),
        (["learning_rate=1:0.1"], "the first end must be below the second"),
        (["learning_rate=0.1:nan"], "must lie between"),
        (["learning_rate=0.1:1000"], "max_learning_rate must lie between 1e-09 and 100, not 1000"),
        (["learning_rate=0.1:1:lin"], "`vary=` takes"),
        (["learning_rate=0.1:1:log:log"], "`vary=` takes"),
        (["learning_rate=a:b"], "takes a number, not 'a'"),
        (["batch_size=2.5:8"], "takes a whole number, not '2.5'"),
        (["weight_decay=0:0.1:log"], "lies above 0"),
        (["nesterov=false:true"], "is no number, give choices"),
        (["model=whitenet,other"], "unknown model 'other'"),
        (["batch_size=32"], "at least two choices"),
        (["batch_size=32,32"], "each once"),
        (["learning_rate=0.1:1", "max_learning_rate=0.1:1"], "names max_learning_rate twice"),
        (["image_size=16:48"], "models take some sizes only, give choices: image_size=24,32"),
        (["warmup_fraction=0.1:0.7", "hold_fraction=0:0.5"], "warmup_fraction=0.7 with hold_fraction=0.5, and then"),
        (["warmup_fraction=0.01:0.9"], "allows warmup_fraction=0.9, and then hold_fraction must lie between 0"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(vary, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        ranges.parse(vary, RECIPE)
    assert message in str(refused.value)


# --- studies ------------------------------------------------------------------------------------------------------


def test_a_tenth_of_other_data_is_held_out_and_the_recipes_own_number_goes_first():
    assert study_in(Path("a")).validation_images == 6
    assert study_in(Path("b"), replace(RECIPE, validation_images=9)).validation_images == 9
    assert study_in(Path("c"), replace(RECIPE, validation_images=9), validation_images=7).scored_on == 7


def test_data_with_validation_images_is_judged_by_those():
    split = tiny().split(8)
    study = sweep_study.create(RECIPE, ranges.parse(VARY, RECIPE), split, out=Path("a"))
    assert (study.validation_images, study.scored_on) == (0, 8)
    assert study.trained({}).validation_images == 0


def test_without_validation_images_no_folder_is_made():
    for changes, held_out, message in (
        ({}, 0, "opens no test image: hold out at least 1"),
        ({"teacher": "teacher"}, None, "learns from a teacher"),
        ({}, 60, "cannot hold out 60 images"),
    ):
        with pytest.raises(ValueError, match=message):
            study_in(Path("a"), replace(RECIPE, **changes), validation_images=held_out)
    assert not Path("a").exists()


def test_a_folder_takes_the_same_study_again_and_names_how_another_differs():
    study = study_in(Path("a"))
    assert study_in(Path("a")) == study == sweep_study.read(Path("a"))
    for options, message in (
        ({"recipe": replace(RECIPE, epochs=5)}, "epochs is 4, not 5"),
        ({"vary": ("learning_rate=0.01:2:log",)}, "`vary=` is max_learning_rate=0.01:10.0:log label_smoothing=0.0:0.2"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"validation_images": 7}, "validation images is 6, not 7"),
    ):
        with pytest.raises(ValueError, match=f"a holds another sweep: .*{message}"):
            study_in(Path("a"), **options)
    other = replace(tiny(), name="mine", train_images=255 - tiny().train_images)
    with pytest.raises(ValueError, match=r"data is \w+, not \w+"):
        sweep_study.create(RECIPE, ranges.parse(VARY, RECIPE), other, out=Path("a"))


def test_a_folder_with_something_else_is_left_alone():
    Path("a").mkdir()
    Path("a/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="a is in use and holds no sweep"):
        study_in(Path("a"))
    assert [path.name for path in Path("a").iterdir()] == ["mine.txt"]
    Path("b").mkdir()
    Path("b/study.json").write_text('{"ranges": 1}')
    with pytest.raises(ValueError, match=r"b.study\.json is not a study"):
        study_in(Path("b"))


# --- trials -------------------------------------------------------------------------------------------------------


def test_trials_are_runs_of_the_varied_recipe_and_see_the_validation_images_only():
    study = study_in(Path("a"), replace(RECIPE, epochs=2, watch_test=True))
    trials = run_search(study, 2)
    assert [trial.number for trial in trials] == [0, 1]
    assert trials[0].parameters == {"max_learning_rate": 0.5, "label_smoothing": 0.05, "nesterov": True}
    assert 0.01 <= trials[1].parameters["max_learning_rate"] <= 10
    for trial in trials:
        directory = Path(trial.run)
        assert directory == Path("a/trials") / str(trial.number)
        assert run.read_recipe(directory) == replace(study.recipe, validation_images=6, **trial.parameters)
        evaluation = run.read_evaluation(directory)
        assert (evaluation.split, evaluation.images, evaluation.accuracy) == (
            "validation",
            6,
            trial.validation_accuracy,
        )
        history = run.read_metrics(directory)
        assert len(history) == trial.epochs == 2
        assert not any("test" in name for entry in history for name in entry)


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_trials(monkeypatch):
    recipe = replace(RECIPE, epochs=3)
    whole = run_search(study_in(Path("whole"), recipe), 3)
    train, calls = training.train, iter(range(100))

    def interrupted(*arguments: Any, **options: Any) -> Result:
        if next(calls) == 2:  # the second part of trial 1
            os.kill(os.getpid(), signal.SIGINT)
        return train(*arguments, **options)

    study = study_in(Path("a"), recipe)
    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(search.Stopped) as stopped:
        run_search(study, 3)
    assert stopped.value.signal == signal.SIGINT
    assert states(entries_of(study)) == ["complete", "running"]
    assert not Path("a/trials/1/evaluation.json").exists()  # parts of a trial are not evaluated: that takes seconds
    assert [trial.number for trial in run_search(study, 3)] == [1, 2]
    assert without_seconds(entries_of(study)) == without_seconds(whole)
    assert run_search(study, 3) == []


def test_a_recipe_outside_the_ranges_is_trial_0_all_the_same(quick):
    study = study_in(Path("a"), vary=("learning_rate=0.01:0.1:log",))
    unchanged, *others = run_search(study, 12)
    assert unchanged.parameters == {"max_learning_rate": 0.5}
    assert all(0.01 <= trial.parameters["max_learning_rate"] <= 0.1 for trial in others)


def test_trials_that_are_worse_than_three_quarters_are_pruned_and_those_that_diverge_end_nothing(quick):
    study = study_in(Path("a"))
    trials = run_search(study, 25)
    assert {trial.state for trial in trials} == set(STATES)
    assert [trial.number for trial in trials] == list(range(25))
    for trial in trials:
        stops = [stop for number, stop in quick if number == str(trial.number)]
        if trial.state == "pruned":
            assert trial.epochs == trial.train_seconds == stops[-1] < 4
        if trial.state == "complete":
            assert stops == ([4] if trial.number == 0 else [2, 3, 4])
        if trial.state == "diverged":
            assert trial.problem == "the loss is nan"
    rates = [trial.parameters["max_learning_rate"] for trial in trials[15:]]
    assert sum(rate < 2 for rate in rates) > 7  # the sampler has learned where it is good


def test_checks_begin_at_a_third_and_are_few():
    assert sweep_trials.stops(1) == [1]
    assert sweep_trials.stops(4) == [2, 3, 4]
    assert sweep_trials.stops(3) == [1, 2, 3]
    assert len(sweep_trials.stops(240)) < 13
    assert sweep_trials.stops(240)[0] == 80


def test_where_epochs_are_varied_no_trial_is_pruned(quick):
    run_search(study_in(Path("a"), vary=("epochs=2:9", "learning_rate=0.01:4")), 12)
    assert len(quick) == 12


def begin(study: Study, trials: int) -> sweep_trials._Started:
    """Take a trial as a process does; releasing its lock is as if that process was killed."""
    started = sweep_trials._begin(study, search.open_study(study), trials)
    assert started is not None
    return started


def test_the_trial_of_a_dead_process_is_resumed_but_not_one_that_another_trains(quick):
    study = study_in(Path("a"))
    dead, alive = begin(study, 9), begin(study, 9)
    dead.lock.release()
    assert [trial.number for trial in run_search(study, 3)] == [0, 2]
    assert entries_of(study)[1].state == "running"
    alive.lock.release()
    assert [trial.number for trial in run_search(study, 3)] == [1]
    assert entries_of(study)[1].parameters == alive.values


def test_a_trial_that_kills_its_process_each_time_is_given_up(quick):
    study = study_in(Path("a"))
    for _ in range(sweep_trials.MOST_STARTS):
        started = begin(study, 9)
        assert started.trial.number == 0
        started.lock.release()
    trials = run_search(study, 2)
    assert states(trials) == ["failed", "complete"]
    assert "killed 3 times" in str(trials[0].problem)


def test_an_end_in_order_is_no_kill_wherever_it_comes(quick, monkeypatch):
    study, train = study_in(Path("a")), training.train
    for error, code in ((KeyboardInterrupt(), signal.SIGINT), (SystemExit(143), signal.SIGTERM)):
        for _ in range(sweep_trials.MOST_STARTS):
            monkeypatch.setattr(training, "train", mock.Mock(side_effect=error))
            with pytest.raises(search.Stopped) as stopped:
                run_search(study, 1)
            assert stopped.value.signal == code
    monkeypatch.setattr(training, "train", train)
    assert states(run_search(study, 1)) == ["complete"]


def test_kills_count_against_a_trial_only_while_it_makes_no_progress():
    study = study_in(Path("a"))
    for epochs in range(1, 1 + sweep_trials.MOST_STARTS):
        started = begin(study, 1)
        resumed = (started.directory / "recipe.json").exists()
        training.train(
            study.trained(started.values),
            tiny(),
            out=None if resumed else started.directory,
            resume=started.directory if resumed else None,
            stop_after_epoch=epochs,
            evaluate=False,
            device="cpu",
        )
        started.lock.release()
    metrics = Path("a/trials/0/metrics.jsonl")
    metrics.write_text(metrics.read_text() + '{"epoch": 4, "tr')  # in the middle of a line
    (trial,) = run_search(study, 1)
    assert (trial.state, trial.epochs) == ("complete", 4)


def test_values_that_no_recipe_takes_together_fail_their_trial_alone(quick, monkeypatch):
    trained = Study.trained

    def refusing(study: Study, values: dict[str, Any]) -> Recipe:
        if values and values["label_smoothing"] != study.recipe.label_smoothing:
            raise ValueError("label_smoothing is wrong")
        return trained(study, values)

    monkeypatch.setattr(Study, "trained", refusing)
    trials = run_search(study_in(Path("a")), 3)
    assert states(trials) == ["complete", "failed", "failed"]
    assert trials[1].problem == "label_smoothing is wrong"


def test_half_a_line_at_the_journals_end_is_dropped(quick):
    study = study_in(Path("a"))
    run_search(study, 2)
    before = entries_of(study)
    with Path("a/study.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert entries_of(study) == before
    assert len(run_search(study, 3)) == 1
    assert len(entries_of(study)) == 3


# --- outcome ------------------------------------------------------------------------------------------------------


def test_the_results_of_a_sweep_are_written_and_the_best_recipe_trains(quick):
    study = study_in(Path("a"))
    outcome = sweep_outcome.outcome(study, run_search(study, 20))
    sweep_outcome.save(study, outcome)
    assert json.loads(Path("a/sweep.json").read_text()) == typed.to_json(outcome)
    assert Path("a/sweep.png").read_bytes()[:4] == b"\x89PNG"
    best = outcome.best
    assert best is not None
    accuracies = [trial.validation_accuracy or 0 for trial in outcome.trials if trial.state == "complete"]
    assert best.validation_accuracy == max(accuracies)
    assert outcome.gain == pytest.approx(max(accuracies) - 0.9)
    recipe = recipes.get("a/best.toml")
    assert recipe.validation_images == RECIPE.validation_images == 0
    assert {name: getattr(recipe, name) for name in best.parameters} == best.parameters
    assert recipe.name == ("minute-sweep" if best.number else "minute")


def test_a_best_recipe_that_chooses_its_epoch_holds_out_the_images_that_it_needs():
    patient, study = replace(RECIPE, patience=1), study_in(Path("a"), validation_images=9)
    unchanged = Trial(0, {"max_learning_rate": 0.5}, "complete", 0.5, 4, 1.0, "", None)
    assert sweep_outcome.best_recipe(study, unchanged).validation_images == 0
    assert sweep_outcome.best_recipe(replace(study, recipe=patient), unchanged).validation_images == 9
    own = replace(study, recipe=replace(patient, validation_images=7))
    assert sweep_outcome.best_recipe(own, unchanged).validation_images == 7
    varied = replace(unchanged, number=1, parameters={"keep_best": True})
    assert sweep_outcome.best_recipe(study, varied).validation_images == 9


def test_how_far_to_trust_the_best_is_reported():
    study = study_in(Path("a"), vary=("learning_rate=0.01:1",), validation_images=50)
    trials = [
        Trial(number, {"max_learning_rate": 0.1 * (number + 1)}, state, accuracy, 4, 1.0, "", None)
        for number, (state, accuracy) in enumerate(
            [("complete", 0.8), ("complete", 0.84), ("pruned", 0.5), ("diverged", None), ("running", None)]
        )
    ]
    outcome = sweep_outcome.outcome(study, trials)
    assert outcome.standard_error == pytest.approx((0.84 * 0.16 / 50) ** 0.5)
    text = "\n".join(sweep_outcome.lines(study, outcome))
    for words in (
        "Best of 5 trials (2 complete, 1 pruned, 1 diverged, 1 running): trial 1, 84.00% on 50 valid",
        "(one standard error: 5.18 points)",
        "4.00 points above the unchanged recipe (trial 0, 80.00%)",
        "with several seeds",
    ):
        assert words in text
    assert [sweep_outcome.line(trial) for trial in trials[:4]] == [
        "Trial 0 (the unchanged recipe): 80.00%, 1.0 s; max_learning_rate 0.1",
        "Trial 1: 84.00%, 1.0 s; max_learning_rate 0.2",
        "Trial 2: pruned at 50.00% after epoch 4, 1.0 s; max_learning_rate 0.3",
        "Trial 3: diverged, 1.0 s; max_learning_rate 0.4",
    ]
    alone = sweep_outcome.outcome(study, trials[:1])
    assert (alone.gain, alone.luck) == (0, 0)
    assert "No trial was better" in "\n".join(sweep_outcome.lines(study, alone))
    none = sweep_outcome.outcome(study, trials[3:])
    assert sweep_outcome.lines(study, none) == ["No trial was complete (1 diverged, 1 running)"]


def test_the_best_of_many_alike_is_as_far_off_as_draws_are():
    draws = torch.randn(20_000, 20, generator=torch.Generator().manual_seed(0))
    assert sweep_outcome.expected_largest(20) == pytest.approx(draws.amax(1).mean().item(), abs=0.03)
    assert sweep_outcome.expected_largest(1) == 0


def test_one_bad_trial_does_not_flatten_the_picture():
    accuracies = enumerate((0.85, 0.851, 0.855, 0.86, 0.1))
    trials = tuple(Trial(number, {}, "complete", value, 4, 1.0, "", None) for number, value in accuracies)
    whole = sweep_outcome.outcome(study_in(Path("a")), trials)
    low, high = sweep_outcome.limits(replace(whole, standard_error=0.005))
    assert 82 < low < 85
    assert 86 < high < 88


# --- the command --------------------------------------------------------------------------------------------------

WORDS = ["sweep", "minute", "--data", "sample", "--epochs", "2", "--set", "batch_size=64", "--device", "cpu"]
WORDS += ["--set", "image_size=16", "--vary", "learning_rate=0.1:1:log", "--out", "a"]


def test_the_command_prints_one_json_object(quick, tinycifar):
    assert [trial["number"] for trial in tinycifar(*WORDS, "--trials", "2", "--json").json["trials"]] == [0, 1]
    done = tinycifar(*WORDS, "--trials", "3")
    assert (done.code, "Trial 2: " in done.out, "Trial 1: " in done.out) == (0, True, False)
    assert "Train it with: tinycifar train a/best.toml --data sample (which evaluates" in done.out
    other = tinycifar(*WORDS, "--trials", "3", "--vary", "weight_decay=0:0.1")
    assert (other.code, "a holds another sweep: --vary is" in other.err) == (2, True)


def test_ctrl_c_ends_the_command_with_130_and_says_how_to_go_on(monkeypatch, tinycifar, quick):
    train = training.train

    def interrupted(*arguments: Any, **options: Any) -> Result:
        if "1" in str(options["out"]):
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(training, "train", interrupted)
    done = tinycifar(*WORDS, "--trials", "3")
    assert (done.code, "Best of 2 trials (1 complete, 1 running)" in done.out) == (130, True)
    assert "--trials 3 --jobs 1 --epochs 2 --data sample --device cpu --out a" in done.out.splitlines()[-1]
    monkeypatch.setattr(training, "train", train)
    assert tinycifar(*WORDS, "--trials", "3").code == 0


def test_a_sweep_without_a_result_ends_with_1_and_one_under_torchrun_is_refused(monkeypatch, tinycifar, quick):
    monkeypatch.setattr(training, "train", mock.Mock(side_effect=FloatingPointError("the loss is nan")))
    done = tinycifar(*WORDS, "--trials", "2")
    assert (done.code, "No trial was complete (2 diverged)" in done.out) == (1, True)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    refused = tinycifar(*WORDS, "--trials", "2")
    assert (refused.code, "start it without torchrun, with --jobs" in refused.err) == (2, True)


def test_trials_that_another_process_trains_are_counted(tinycifar, quick):
    assert tinycifar(*WORDS, "--trials", "1").code == 0
    started = begin(sweep_study.read(Path("a")), 2)
    done = tinycifar(*WORDS, "--trials", "2")
    assert (done.code, "Another process runs 1 of the trials" in done.out) == (0, True)
    started.lock.release()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tinycifar):
    for name in ("search", "trials"):
        monkeypatch.delitem(sys.modules, f"tinycifar.sweep.{name}")
        monkeypatch.delattr(f"tinycifar.sweep.{name}")
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused = tinycifar(*WORDS)
    assert (refused.code, 'pip install "tinycifar[sweep]"' in refused.err) == (2, True)


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process of its own."""
    with contextlib.ExitStack() as started:

        def start(*words: str) -> subprocess.Popen[str]:
            line = [sys.executable, "-m", "tinycifar", *WORDS, "--jobs", "2", "--threads", "1", *words]
            process = subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


def children(process: subprocess.Popen[str]) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def wait_for_trials(count: int) -> None:
    wait_for(lambda: len(list(Path("a/trials").glob("*/metrics.jsonl"))) >= count)


@pytest.mark.end_to_end
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_two_processes_share_a_study_and_killed_ones_lose_no_trial(start):
    process = start("--trials", "8")
    wait_for_trials(2)
    os.kill(children(process)[0], signal.SIGKILL)  # one worker; the other does all the rest
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    assert "worker 1 ended with -9" in printed
    assert all(f"Trial {number}" in printed for number in range(8)), printed
    assert {trial["state"] for trial in atomic.read_json(Path("a/sweep.json"))["trials"]} <= {"complete", "pruned"}

    process = start("--trials", "14")
    wait_for_trials(10)
    workers = children(process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{number}/cmdline").exists() for number in workers))

    process = start("--trials", "14")
    wait_for_trials(12)
    process.send_signal(signal.SIGINT)
    printed = process.communicate()[0]
    assert process.returncode == 130, printed
    assert "Resume with: tinycifar sweep minute" in printed

    process = start("--trials", "14")
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    trials = atomic.read_json(Path("a/sweep.json"))["trials"]
    assert len(trials) == 14
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
