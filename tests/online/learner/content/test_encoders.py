"""An encoder comes from a folder or a package that is there: nothing is downloaded, and nothing is unpickled."""

import json
import logging
import socket

import numpy as np
import pytest

from online.config.settings import SettingsError
from online.learner.content import encoders
from online.learner.content.encoders import load_encoder

ALL = "an installed package is needed: pip install 'nextclick[text]'"


@pytest.fixture(autouse=True)
def nothing_loaded():
    load_encoder.cache_clear()
    yield
    load_encoder.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("something was to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def refusal(name):
    with pytest.raises(SettingsError) as raised:
        load_encoder(str(name))
    text = str(raised.value)
    assert text.startswith("NEXTCLICK_TEXT_ENCODER: ")
    assert "\n" not in text
    return text


def test_a_name_that_is_neither_is_refused(tmp_path):
    assert refusal(tmp_path / "none").endswith("none is neither a folder nor wordllama")


@pytest.mark.parametrize("modules", [None, "sentence_transformers.models.Transformer"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "1_Dense/model.pkl"])
def test_a_model_that_is_a_pickle_is_refused_and_not_read(tmp_path, monkeypatch, name, modules):
    monkeypatch.setattr(encoders, "find_spec", lambda _: object())
    (tmp_path / "1_Dense").mkdir()
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps([{"type": modules, "path": ""}]))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert f"{tmp_path / name} is a pickle, which may run any code when it is read" in refusal(tmp_path)


def test_a_pickle_beside_the_same_weights_as_safetensors_is_left_alone(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors", "training_args.bin"):
        (tmp_path / name).touch()
    encoders._refuse_pickles(tmp_path)


@pytest.mark.parametrize(
    ("modules", "package", "wanted"),
    [
        (None, "model2vec", "nextclick[text]"),
        ("sentence_transformers.models.StaticEmbedding", "model2vec", "nextclick[text]"),
        ("sentence_transformers.models.Transformer", "sentence-transformers", "sentence-transformers"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, modules, package, wanted):
    monkeypatch.setattr(encoders, "find_spec", lambda _: None)
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps([{"type": modules, "path": ""}]))
    assert refusal(tmp_path).endswith(f"{tmp_path} needs the package {package}: pip install '{wanted}'")
    assert "wordllama needs the package wordllama: pip install 'nextclick[text]'" in refusal("wordllama")


@pytest.mark.parametrize("text", ["[", "{}", "[]", '[{"path": ""}]'])
def test_a_list_of_modules_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    assert "modules.json cannot be read: " in refusal(tmp_path)


@pytest.mark.usefixtures("offline")
def test_wordllama_is_loaded_from_its_package_without_a_network():
    pytest.importorskip("wordllama", reason=ALL)
    before = logging.getLogger().handlers[:], logging.getLogger().level
    encoder = load_encoder("wordllama")
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    vectors = encoder.encode(["a red wooden chair", "a brown wooden stool", "stock market news", ""])
    assert (vectors.shape, vectors.dtype) == ((4, 256), np.float32)
    assert not vectors[3].any()
    units = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    assert units[0] @ units[1] > units[0] @ units[2] + 0.2
    assert load_encoder("wordllama") is encoder


def static_folder(folder, rows):
    """Saves a table of vectors of words; rows (3, D): of unknown words, red and chair."""
    model2vec = pytest.importorskip("model2vec", reason=ALL)
    tokenizers = pytest.importorskip("tokenizers", reason=ALL)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "red": 1, "chair": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model2vec.StaticModel(np.array(rows, np.float32), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("offline")
def test_a_folder_of_model2vec_is_loaded_and_its_vectors_are_means_of_its_rows(tmp_path):
    folder = static_folder(tmp_path / "one", [[9, 9], [1, 2], [3, 6]])
    encoder = load_encoder(str(folder))
    assert encoder.encode(["red chair", "red", "unheard of"]).tolist() == [[2, 4], [1, 2], [0, 0]]
    load_encoder.cache_clear()
    assert load_encoder(str(folder.rename(tmp_path / "moved"))).identity == encoder.identity
    other = static_folder(tmp_path / "two", [[9, 9], [1, 2], [3, 7]])
    assert load_encoder(str(other)).identity != encoder.identity


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    pytest.importorskip("model2vec", reason=ALL)
    assert "cannot be loaded by model2vec: " in refusal(tmp_path)


@pytest.mark.usefixtures("offline")
def test_a_folder_of_sentence_transformers_is_loaded(tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    transformers = pytest.importorskip("transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "chair"]))
    transformers.BertTokenizerFast(str(words / "vocab.txt")).save_pretrained(words)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=7, **sizes)).save_pretrained(words)
    model = package.SentenceTransformer(modules=[modules.Transformer(str(words)), modules.Pooling(8)])
    model.save(str(tmp_path / "model"))
    found = load_encoder(str(tmp_path / "model")).encode(["red chair", "red"])
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found, model.encode(["red chair", "red"]), atol=1e-5)
