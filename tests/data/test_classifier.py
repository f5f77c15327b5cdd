"""The text classifier: learns to tell two kinds, survives saving, and filters by its score."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from pipeline_samples import WORDS, filtered, prose, write_rows

from pomona.data.classifier import TextClassifier, TrainingOptions, fit, train_classifier
from pomona.errors import PomonaError


def shouting(rng: random.Random) -> str:
    return " ".join(f"BUY {rng.choice(WORDS)} now!!! Click here $$$" for _ in range(20))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classifier")
    rng = random.Random(1)
    good = write_rows(root / "good.jsonl", [prose(rng) for _ in range(120)])
    bad = write_rows(root / "bad.jsonl", [shouting(rng) for _ in range(40)])
    train_classifier([good], [bad], root / "quality")
    return root / "quality"


def test_it_tells_the_kinds_apart_that_it_was_shown(trained: Path) -> None:
    model = TextClassifier.load(trained)
    rng = random.Random(99)
    scores = model.score([prose(rng), shouting(rng), prose(rng), shouting(rng)])
    assert scores[0] > 0.9 > 0.1 > scores[1] and scores[2] > 0.9 > 0.1 > scores[3]
    assert model.config.accuracy == 1.0 and model.config.auc == 1.0
    assert (model.config.good, model.config.bad) == (120, 40) and 5 <= model.config.held_out <= 30


def test_labels_without_meaning_give_no_better_than_chance() -> None:
    rng = random.Random(2)
    model = fit([prose(rng) for _ in range(150)], [prose(rng) for _ in range(150)], TrainingOptions(passes=3))
    assert 0.15 < model.config.auc < 0.85


def test_training_is_the_same_every_time_and_nothing_is_pickled(trained: Path, tmp_path: Path) -> None:
    train_classifier([trained.parent / "good.jsonl"], [trained.parent / "bad.jsonl"], tmp_path / "again")
    names = {path.name for path in trained.iterdir()}
    assert names == {"classifier.json", "classifier.safetensors"}
    assert all((trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_score_is_the_logistic_of_a_sum(trained: Path) -> None:
    model = TextClassifier.load(trained)
    assert model.score([""])[0] == pytest.approx(1 / (1 + np.exp(-model.bias)))
    both = model.score(["one text", "another"])
    assert both[1] == pytest.approx(model.score(["another"])[0], abs=1e-12)


def test_the_step_keeps_a_range_of_scores(trained: Path) -> None:
    pytest.importorskip("datatrove")
    from pomona.data.pipeline.recipe import Classifier
    from pomona.data.pipeline.scoring import KeepByScore

    rng = random.Random(3)
    texts = [prose(rng), shouting(rng)]
    low = KeepByScore(Classifier(model="m", at_least=0.5), trained)
    high = KeepByScore(Classifier(model="m", at_least=0, at_most=0.5), trained)
    assert filtered(low, texts) == [(True, None), (False, "score_low")]
    assert filtered(high, texts) == [(False, "score_high"), (True, None)]


def test_what_is_no_classifier_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(PomonaError, match="pomona data classifier"):
        TextClassifier.load(tmp_path)
    broken = Path(shutil.copytree(trained, tmp_path / "broken"))
    (broken / "classifier.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(PomonaError, match="train it again"):
        TextClassifier.load(broken)
    config = json.loads((trained / "classifier.json").read_text())
    for key, value in {"features": 512, "ngram": 9, "version": 2, "more": 1}.items():
        other = Path(shutil.copytree(trained, tmp_path / key))
        (other / "classifier.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(PomonaError, match="train it again"):
            TextClassifier.load(other)


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", ["a", "b"])
    with pytest.raises(PomonaError, match="2 good documents: are too few"):
        train_classifier([few], [few], tmp_path / "out")
    assert not (tmp_path / "out").exists()
