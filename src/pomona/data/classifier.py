"""A fastText-like classifier of text: hashed word n-grams, one linear layer, a score between 0 and 1.

Used for quality (AFM_REPORT 2.2 step 4, which cites DCLM's fastText filter), and with other labels for safety
or mathematics. Training is scikit-learn's; what is saved is a table of weights (safetensors) and a JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.data.documents import Skip, find_files, read_documents
from pomona.data.permutation import mix
from pomona.errors import PomonaError
from pomona.models.model_directory import ModelDirectoryWriter, Progress, read_json_object, write_json

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import HashingVectorizer

CONFIG, WEIGHTS = "classifier.json", "classifier.safetensors"
_MOST_CHARACTERS = 100_000  # of a document; its beginning tells
_HELD_OUT = 10  # every tenth document is kept out of training


class ClassifierConfig(BaseModel):
    """What classifier.json holds. accuracy and auc are those of the documents that were held out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["pomona-text-classifier"] = "pomona-text-classifier"
    version: Literal[1] = 1
    features: int = Field(ge=1 << 8, le=1 << 24)
    ngram: int = Field(ge=1, le=5)
    good: int = Field(ge=0)
    bad: int = Field(ge=0)
    held_out: int = Field(ge=0)
    accuracy: float
    auc: float


@dataclass(frozen=True)
class TrainingOptions:
    """features: size of the hashed table; ngram: up to this many words; the rest is scikit-learn's SGD."""

    features: int = 1 << 18
    ngram: int = 2
    alpha: float = 1e-5
    passes: int = 20
    seed: int = 0


class TextClassifier:
    """weights: float32 [features]; bias. `score` gives the probability that a text is of the good kind."""

    def __init__(self, config: ClassifierConfig, weights: NDArray[np.float32], bias: float) -> None:
        self.config, self.weights, self.bias = config, weights, bias
        self._vectorizer: HashingVectorizer | None = None

    @classmethod
    def load(cls, folder: Path) -> TextClassifier:
        """PomonaError: no such folder, or files that are no classifier."""
        path = folder / CONFIG
        if not path.is_file():
            raise PomonaError(
                f"{folder}: is no text classifier (no {CONFIG}); train one by `pomona data classifier`"
            )
        try:
            config = ClassifierConfig.model_validate(read_json_object(path))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise PomonaError(f"{path}: {place}: {first['msg']}; train it again") from error
        from safetensors.numpy import load_file

        try:
            tensors = load_file(folder / WEIGHTS)
        except Exception as error:  # safetensors has an error class of its own per version
            raise PomonaError(f"{folder / WEIGHTS}: cannot be read ({error}); train it again") from error
        weights, bias = tensors.get("weights"), tensors.get("bias")
        if (
            weights is None
            or bias is None
            or weights.shape != (config.features,)
            or bias.shape != (1,)
            or not np.isfinite(weights).all()
            or not np.isfinite(bias).all()
        ):
            raise PomonaError(f"{folder / WEIGHTS}: is not of {CONFIG}'s shape; train it again")
        return cls(config, weights.astype(np.float32), float(bias[0]))

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"weights": self.weights, "bias": np.array([self.bias], np.float32)}, folder / WEIGHTS)
        write_json(folder / CONFIG, self.config.model_dump())

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """float64 [len(texts)] between 0 and 1."""
        if self._vectorizer is None:
            self._vectorizer = _vectorizer(self.config.features, self.config.ngram)
        rows = self._vectorizer.transform([text[:_MOST_CHARACTERS] for text in texts])
        logits = np.asarray(rows @ self.weights, np.float64) + self.bias
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_vectorizer": None}


def train_classifier(
    good: Sequence[Path],
    bad: Sequence[Path],
    target: Path,
    options: TrainingOptions = TrainingOptions(),
    *,
    text_key: str = "text",
    overwrite: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> tuple[TextClassifier, list[Skip]]:
    """Learn to tell the documents of `good` from those of `bad`, and write the model into `target`.

    Both kinds weigh the same however many they are. PomonaError: fewer than 20 documents of a kind.
    """
    skips: list[Skip] = []
    texts = {True: list(_texts(good, text_key, skips)), False: list(_texts(bad, text_key, skips))}
    for kind, label in ((True, "good"), (False, "bad")):
        if len(texts[kind]) < 2 * _HELD_OUT:
            raise PomonaError(
                f"{len(texts[kind])} {label} documents: are too few to learn from; "
                f"give at least {2 * _HELD_OUT}"
            )
    with ModelDirectoryWriter(target, overwrite=overwrite, mark=CONFIG) as directory:
        progress("train", 0, 0)
        model = fit(texts[True], texts[False], options)
        model.save(directory.path)
    return model, skips


def fit(good: Sequence[str], bad: Sequence[str], options: TrainingOptions) -> TextClassifier:
    """The classifier of two lists of texts; every tenth of each is held out and measured on."""
    try:
        from sklearn.linear_model import SGDClassifier
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise PomonaError("training a classifier needs scikit-learn: pip install 'pomona[train]'") from None
    texts = [text[:_MOST_CHARACTERS] for text in (*good, *bad)]
    labels = np.array([1] * len(good) + [0] * len(bad))
    kept_out = np.array([mix(options.seed, i) % _HELD_OUT == 0 for i in range(len(texts))])
    rows = _vectorizer(options.features, options.ngram).transform(texts)
    learner = SGDClassifier(
        loss="log_loss",
        alpha=options.alpha,
        max_iter=options.passes,
        tol=None,
        class_weight="balanced",
        average=True,
        random_state=options.seed,
    ).fit(rows[~kept_out], labels[~kept_out])
    held, truth = rows[kept_out], labels[kept_out]
    both = len(set(truth.tolist())) == 2
    config = ClassifierConfig(
        features=options.features,
        ngram=options.ngram,
        good=len(good),
        bad=len(bad),
        held_out=int(kept_out.sum()),
        accuracy=float(learner.score(held, truth)) if both else 0.0,
        auc=float(roc_auc_score(truth, learner.decision_function(held))) if both else 0.0,
    )
    return TextClassifier(config, learner.coef_[0].astype(np.float32), float(learner.intercept_[0]))


def _vectorizer(features: int, ngram: int) -> HashingVectorizer:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        raise PomonaError("a text classifier needs scikit-learn: pip install 'pomona[train]'") from None
    return HashingVectorizer(
        n_features=features, ngram_range=(1, ngram), token_pattern=r"(?u)\w+|[^\w\s]", dtype=np.float32
    )


def _texts(paths: Sequence[Path], text_key: str, skips: list[Skip]) -> Iterator[str]:
    for path in find_files(paths):
        for found in read_documents(path, text_key=text_key):
            if isinstance(found, Skip):
                skips.append(found)
            else:
                yield found.text
