"""Encoders of texts, from a folder or an installed package.

Nothing is downloaded, unpickled, or run that a folder holds. The packages are imported when an encoder is loaded; the
first two are the extra `text`. What a name may be:

- `wordllama`: the package, whose wheel has the weights;
- a folder with static embeddings, as `model2vec` or `sentence-transformers` save them: read by `model2vec`;
- a folder with any other model of `sentence-transformers`: read by that package, of 6.0 or later.

Letters: `n` texts, `D` width of their vectors.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from online.config.settings import SettingsError

WORDLLAMA = "wordllama"
_VARIABLE = "NEXTCLICK_TEXT_ENCODER"
_PICKLED = ("pytorch_model*.bin", "*.ckpt", "*.joblib", "*.pickle", "*.pkl", "*.pt", "*.pth")
_CODE_REFUSED_FROM = 6  # version of sentence-transformers; earlier ones run code of a folder, whatever they are told


@dataclass(frozen=True)
class Encoder:
    """What makes vectors of texts."""

    identity: str  # of its weights: vectors of one encoder say nothing beside those of another
    encode: Callable[[list[str]], NDArray[np.float32]]  # n texts -> (n, D)


@lru_cache(maxsize=1)
def load_encoder(name: str) -> Encoder:
    """Loads the encoder of a name, once in a process.

    Args:
        name: a folder, or `wordllama`.

    Raises:
        SettingsError: there is none, or it cannot be used; one line that says what to do.
    """
    # Several threads would take the cores on which clicks are learned.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(name).expanduser()
    if name == WORDLLAMA:
        package, load = "wordllama", _of_wordllama
    elif not folder.is_dir():
        raise SettingsError(f"{_VARIABLE}: {name} is neither a folder nor {WORDLLAMA}")
    elif _is_static(folder):
        package, load = "model2vec", partial(_of_static_folder, folder)
    else:
        package, load = "sentence-transformers", partial(_of_sentence_transformers, folder)
    _refuse_pickles(folder)
    if find_spec(package.replace("-", "_")) is None:
        wanted = package if package == "sentence-transformers" else "nextclick[text]"
        raise SettingsError(f"{_VARIABLE}: {name} needs the package {package}: pip install '{wanted}'")
    try:
        with _logging_kept():
            return load()
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingsError(f"{_VARIABLE}: {name} cannot be loaded by {package}: {why[0]}") from error


def _of_wordllama() -> Encoder:
    import wordllama  # noqa: PLC0415 - an extra

    # The folder is named, since the package looks for its tokenizer in another one, and would go on to download it.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return Encoder(f"wordllama {metadata.version('wordllama')}", lambda texts: np.asarray(model.embed(texts)))


def _of_static_folder(folder: Path) -> Encoder:
    from model2vec import StaticModel  # noqa: PLC0415

    model = StaticModel.from_pretrained(folder)
    return Encoder(_digest(folder), lambda texts: np.asarray(model.encode(texts), np.float32))


def _of_sentence_transformers(folder: Path) -> Encoder:
    version = metadata.version("sentence-transformers")
    if int(version.split(".")[0]) < _CODE_REFUSED_FROM:
        raise ValueError(f"{version} runs code that a folder holds: install version {_CODE_REFUSED_FROM} or later")
    package = import_module("sentence_transformers")  # no dependency of ours: it is large
    model = package.SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )
    return Encoder(_digest(folder), lambda texts: np.asarray(model.encode(texts, show_progress_bar=False), np.float32))


def _is_static(folder: Path) -> bool:
    """Whether a folder's model is a table of token vectors, as far as its list of modules says."""
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        return str(modules[0]["type"]).endswith(".StaticEmbedding")
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise SettingsError(f"{_VARIABLE}: {folder / 'modules.json'} cannot be read: {error}") from error


def _refuse_pickles(folder: Path) -> None:
    """Raises SettingsError where weights would have to be unpickled: none lie beside them as safetensors."""
    for path in (path for pattern in _PICKLED for path in folder.rglob(pattern)):
        if not any(path.parent.glob("*.safetensors")):
            raise SettingsError(
                f"{_VARIABLE}: {path} is a pickle, which may run any code when it is read: "
                "save the model as safetensors"
            )


def _digest(folder: Path) -> str:
    """Returns a digest of the files that decide what a model does."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Undoes `logging.basicConfig`, which wordllama calls when it is imported."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
