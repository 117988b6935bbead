"""From an experiment's file to its runs, and one sentence for each mistake in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiment_helpers import ROOT, Workshop

from gid_cuda.errors import UserError
from gid_cuda.experiment.matrix import TEACHER, load_experiment


def test_teacher_then_all_rows_of_a_seed_then_of_the_next(workshop: Workshop) -> None:
    experiment = workshop.experiment(seeds=[3, 5])
    keys = ["teacher", "plain/seed3", "gid/seed3", "plain/seed5", "gid/seed5"]
    assert [run.key for run in experiment.runs] == keys
    assert [run.folder for run in experiment.runs] == [workshop.folder / "out/runs" / key for key in keys]
    teacher, plain, gid, *_ = experiment.runs
    assert teacher.row == TEACHER and teacher.config.model.backbone == "resnet34" and teacher.config.seed == 0
    assert plain.config.distill is None and plain.config.teacher is None and plain.teacher is None
    assert gid.config.seed == 3 and gid.teacher == "teacher" and gid.config.distill is not None
    assert gid.config.teacher is not None and gid.config.teacher.backbone == "resnet34"
    assert gid.config.teacher.weights == str(teacher.folder / "best.pt")
    assert experiment.baseline == "plain"


def test_settings_in_their_order(workshop: Workshop) -> None:
    experiment = workshop.experiment(
        set={"train.steps": 5, "train": {"lr": 0.5}},
        student={"config": "student.yaml", "set": {"model.fpn_channels": 16, "train.lr": 0.25}},
        teacher={"config": "teacher.yaml", "set": {"model.fpn_channels": 32, "train.steps": 7}},
        rows=[{"name": "GID", "set": {"distill": {"top_k": 4}, "model.fpn_channels": 8}}],
    )
    teacher, gid = (run.config for run in experiment.runs)
    assert (teacher.train.steps, teacher.train.lr, teacher.model.fpn_channels) == (7, 0.5, 32)
    assert (gid.train.steps, gid.train.lr, gid.model.fpn_channels) == (5, 0.25, 8)
    assert gid.teacher is not None and gid.teacher.fpn_channels == 32
    assert gid.distill is not None and gid.distill.top_k == 4
    assert experiment.baseline is None


def test_detectors_have_teachers_rows_and_paper_of_their_own(workshop: Workshop) -> None:
    experiment = workshop.experiment(
        detectors=[{"name": "RetinaNet"}, {"name": "Faster R-CNN", "set": {"model.detector": "faster_rcnn"}}],
        rows=[
            {"name": "plain", "paper": {"RetinaNet": {"AP": 36.2}, "Faster R-CNN": {"AP": 38.3}}},
            {"name": "GID", "set": {"distill.method": "gid"}, "only": ["Faster R-CNN"]},
        ],
    )
    keys = ["retinanet/teacher", "retinanet/plain/seed0"]
    keys += [f"faster-r-cnn/{name}" for name in ("teacher", "plain/seed0", "gid/seed0")]
    assert [run.key for run in experiment.runs] == keys
    assert [run.config.model.detector for run in experiment.runs] == ["retinanet"] * 2 + ["faster_rcnn"] * 3
    assert experiment.runs[-1].teacher == "faster-r-cnn/teacher"
    numbers = experiment.paper("Faster R-CNN", "plain")
    assert numbers is not None and numbers.AP == 38.3 and experiment.paper("RetinaNet", "GID") is None


def test_a_sweep_is_a_row_for_each_combination(workshop: Workshop) -> None:
    sweep = {"distill.top_k": [0, 5], "distill.kinds": ["all", ["negative"]]}
    experiment = workshop.experiment(rows=[{"name": "GID", "set": {"distill.alpha": 0.5}, "sweep": sweep}])
    found = {run.row: run.config.distill for run in experiment.runs if run.row != TEACHER}
    assert [(d.top_k, d.kinds, d.alpha) for d in found.values() if d] == [
        (0, "all", 0.5), (0, ["negative"], 0.5), (5, "all", 0.5), (5, ["negative"], 0.5)
    ]  # fmt: skip
    assert list(found)[1] == "GID, top_k 0, kinds negative"


def test_a_teacher_that_is_there_is_not_trained(workshop: Workshop) -> None:
    experiment = workshop.experiment(teacher={"config": "teacher.yaml", "weights": "mine.pt"})
    assert [run.key for run in experiment.runs] == ["plain/seed0", "gid/seed0"]
    gid = experiment.runs[1]
    assert gid.teacher is None and gid.config.teacher is not None and gid.config.teacher.weights == "mine.pt"


PLAIN = {"name": "plain"}


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"sedes": [1]}, "unknown key sedes; did you mean seeds?"),
        ({"rows": [{"name": "a", "papre": {}}]}, "unknown key rows[0].papre; did you mean rows[0].paper?"),
        ({"rows": [{"name": "a", "paper": {"AP5": 1.0}}]}, "unknown key rows[0].paper.AP5; did you mean"),
        ({"rows": [{"name": "a", "set": {"distil.top_k": 3}}]}, "row a: unknown key distil; did you mean distill?"),
        ({"rows": [{"name": "a", "set": {"train.lr": "fast"}}]}, "row a: train.lr has the text 'fast'"),
        ({"rows": [{"name": "a", "set": {"output": "x"}}]}, "row a: sets output, which the experiment's own output"),
        ({"rows": [{"name": "a", "set": {"train..lr": 1}}]}, "row a: 'train..lr' is no key path"),
        ({"rows": []}, "rows has the list [], expected a list with at least 1"),
        ({"rows": [PLAIN, dict(PLAIN)]}, "rows: plain is there twice"),
        ({"rows": [{"name": "K=5"}, {"name": "K = 5"}]}, "rows: K=5 and K = 5 name the same folder"),
        ({"rows": [{"name": "Teacher"}]}, "teacher and Teacher name the same folder"),
        ({"rows": [{"name": "+"}]}, "the name '+' has no letter and no digit"),
        ({"rows": [{"name": "a", "only": ["FCOS"]}]}, "names the detector FCOS, but the experiment has no detectors"),
        ({"rows": [{"name": "a", "sweep": {"seed": [1]}, "paper": {"AP": 1.0}}]}, "write a row for each value"),
        ({"seeds": [1, 1]}, "seeds names 1 twice"),
        ({"baseline": "plane"}, "baseline is plane, expected the name of a row: plain, GID"),
        ({"student": {"config": "gone.yaml"}}, "gone.yaml cannot be read: No such file"),
        ({"teacher": {"config": "teacher.yaml", "set": {"distill": {}}}}, "teacher"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(workshop: Workshop, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        workshop.experiment(**changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not (workshop.folder / "out").exists()


def test_an_experiment_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text, told in [("gone.yaml", None, "No such file"), ("list.yaml", "[1]", "`key: value` pairs")]:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=told):
            load_experiment(tmp_path / name)


SHIPPED = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments(path: Path) -> None:
    experiment = load_experiment(path)
    runs = {"methods": 13, "table5": 31, "table6": 25, "table7": 19, "coco": 15, "small_images": 16, "unlabeled": 28}
    assert len(experiment.runs) == runs[path.stem]
    baselines = {"table7": "K = 0", "small_images": "GID", "unlabeled": "10 %, plain"}
    assert experiment.baseline == baselines.get(path.stem, "plain")
    for run in experiment.runs:
        if run.config.distill is not None:
            assert run.config.teacher is not None and run.config.teacher.detector == run.config.model.detector


def test_the_papers_numbers_are_those_of_its_text() -> None:
    """The gains that its Table 2 prints follow from the numbers beside the rows."""
    experiment = load_experiment(ROOT / "configs" / "experiments" / "coco.yaml")
    gains = {
        "RetinaNet": (2.9, 3.2, 3.5, 2.1, 3.6, 3.6, 3.2, 3.0, 3.8, 2.5),
        "FCOS": (3.5, 3.4, 4.2, 4.2, 4.0, 3.5, 3.8, 5.3, 4.0, 3.8),
        "Faster R-CNN": (1.9, 1.9, 2.1, 1.3, 2.4, 2.7, 2.4, 2.6, 2.4, 2.9),
    }
    for detector, printed in gains.items():
        ours, plain = (experiment.paper(detector, row) for row in ("GID", "plain"))
        assert ours is not None and plain is not None
        made = [a - b for a, b in zip(ours.model_dump().values(), plain.model_dump().values(), strict=True)]
        assert made == pytest.approx(printed, abs=0.051)


def test_settings_of_one_row_do_not_leak_into_the_next(workshop: Workshop) -> None:
    experiment = workshop.experiment(
        student={"config": "student.yaml", "set": {"distill": {}}},
        rows=[{"name": "FitNet", "set": {"distill.method": "fitnet"}}, {"name": "K", "set": {"distill.top_k": 5}}],
    )
    *_, fitnet, k = (run.config.distill for run in experiment.runs)
    assert fitnet is not None and k is not None and (fitnet.method, k.method) == ("fitnet", "gid")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"name": "a", "set": {"seed": 3}}]}, "row a: sets seed, which is without effect"),
        ({"rows": [{"name": "a", "sweep": {"seed": [3, 4]}}]}, "row a, seed 3: sets seed, which is without effect"),
        (
            {"rows": [{"name": "a", "set": {"distill.method": "gid", "teacher.backbone": "resnet101"}}]},
            "row a: sets teacher, which is without effect",
        ),
        (
            {
                "detectors": [{"name": "A"}, {"name": "B", "set": {"model.detector": "fcos"}}],
                "teacher": {"config": "teacher.yaml", "paper": {"AP": 38.1}},
            },
            "teacher.paper would stand for every detector",
        ),
        (
            {"rows": [{"name": "a", "set": {"model.detector": "fcos", "distill.method": "fine_grained"}}]},
            "distill.method fine_grained is for detectors with anchors .* model.detector is fcos",
        ),
    ],
)
def test_what_would_be_without_effect_or_fail_at_last_is_refused(
    workshop: Workshop, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        workshop.experiment(**changes)


def test_a_teacher_may_be_set_where_the_experiment_has_none(workshop: Workshop) -> None:
    rows = [{"name": "GID", "set": {"distill.method": "gid", "teacher.weights": "coco"}}]
    (gid,) = workshop.experiment(teacher=None, rows=rows).runs
    assert gid.config.teacher is not None and gid.config.teacher.weights == "coco"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"set": {"distill": "none", "distill.top_k": 5}}, "row a: switches distill off and sets distill.top_k"),
        ({"set": {"distill.top_k": 5, "distill": None}}, "row a: switches distill off and sets distill.top_k"),
        ({"set": {"distill.kinds": "all", "distill": {"kinds": ["negative"]}}}, "row a: sets distill.kinds twice"),
        ({"set": {"distill.fitnet.weight": 2.0, "distill": {"fitnet": 3}}}, "sets distill.fitnet and sets distill.f"),
        ({"set": {"distill.top_k": 5}, "sweep": {"distill.top_k": [1, 2]}}, "row a: sets distill.top_k twice"),
        ({"set": {"distill": "none"}, "sweep": {"distill.top_k": [1]}}, "row a: switches distill off and sets"),
    ],
)
def test_one_place_says_a_thing_once(workshop: Workshop, row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        workshop.experiment(rows=[{"name": "a", **row}])
    assert told in str(caught.value) and "leave out one of them" in str(caught.value)


def test_a_section_and_keys_of_it_go_together(workshop: Workshop) -> None:
    rows = [{"name": "a", "set": {"distill": {}, "distill.top_k": 5}}]
    rows += [{"name": "b", "set": {"distill": {"alpha": 0.5}, "distill.top_k": 6}}]
    *_, a, b = (run.config.distill for run in workshop.experiment(rows=rows).runs)
    assert a is not None and b is not None and (a.top_k, b.alpha, b.top_k) == (5, 0.5, 6)


def test_what_reaches_the_teacher_too_is_told_where_to_put(workshop: Workshop) -> None:
    gid = {"name": "GID", "set": {"distill.top_k": 3}}
    for changes, where in [
        ({"set": {"distill.top_k": 5}}, "set"),
        ({"detectors": [{"name": "A", "set": {"distill": {"top_k": 5}}}]}, "detector A"),
    ]:
        with pytest.raises(UserError, match=rf"matrix.yaml, {where}: sets distill for the teacher, too.*student\.set"):
            workshop.experiment(rows=[gid], **changes)
    assert len(workshop.experiment(rows=[gid], set={"distill": "none"}).runs) == 2


def test_a_row_that_a_detector_cannot_have_is_told_to_leave_it_out(workshop: Workshop) -> None:
    detectors = [{"name": "R"}, {"name": "F", "set": {"model.detector": "fcos"}}]
    rows = [{"name": "fine", "set": {"distill.method": "fine_grained"}}]
    with pytest.raises(UserError, match=r"use method gid or fitnet; or let row fine leave out F by only: \[\.\.\.\]"):
        workshop.experiment(detectors=detectors, rows=rows)
    rows[0]["only"] = ["R"]
    assert len(workshop.experiment(detectors=detectors, rows=rows).runs) == 3
