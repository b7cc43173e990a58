import builtins
import json
import os
import pickle
import shutil
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from text_sentiment_env import TextSentimentEnv, load_sentiment_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "not", "the"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A directory in Hugging Face's layout: a tiny BERT classifier with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            initializer_range=1.0,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
    ).save_pretrained(folder)
    return folder


def relabel(folder, tmp_path, labels):
    """A copy of a model directory with other label names."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


TEXTS = ["good film", "the film the film not bad", "bad"]


def test_vader_signs():
    scores = load_sentiment_model("vader")(["a great film", "a terrible film", "the film"])
    assert scores[0] > 0.5
    assert scores[1] < -0.3
    assert scores[2] == 0


def test_hugging_face_score_is_p_positive_minus_p_negative(classifier):
    import torch
    from transformers import pipeline

    scores = load_sentiment_model(str(classifier))(TEXTS)
    judge = pipeline("text-classification", str(classifier), top_k=None, dtype=torch.float64)
    for score, labels in zip(scores, judge(TEXTS), strict=True):
        p = {label["label"]: label["score"] for label in labels}
        assert score == pytest.approx(p["POSITIVE"] - p["NEGATIVE"], abs=1e-5)


def test_a_directory_as_a_path(classifier):
    scores = load_sentiment_model(classifier)(TEXTS)
    assert scores == pytest.approx(load_sentiment_model(str(classifier))(TEXTS))


def test_hugging_face_batches_agree(classifier):
    one_by_one = load_sentiment_model(str(classifier), batch_size=1)(TEXTS)
    assert load_sentiment_model(str(classifier))(TEXTS) == pytest.approx(one_by_one, abs=1e-6)
    assert load_sentiment_model(str(classifier))([]).shape == (0,)


def test_dtype_and_device_are_selectable(classifier):
    judge = load_sentiment_model(str(classifier), dtype="bfloat16", device="cpu")
    reference = load_sentiment_model(str(classifier))(TEXTS)
    assert judge(TEXTS) == pytest.approx(reference, abs=0.05)
    assert not np.array_equal(judge(TEXTS), reference)


@pytest.mark.parametrize(
    ("labels", "sign"),
    [
        (("POSITIVE", "NEGATIVE"), -1),
        (("neg", "pos"), 1),
        (("LABEL_0", "LABEL_1"), 1),
    ],
)
def test_labels_are_read_by_name(classifier, tmp_path, labels, sign):
    expected = sign * load_sentiment_model(str(classifier))(TEXTS)
    judge = load_sentiment_model(relabel(classifier, tmp_path, labels))
    assert judge(TEXTS) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [("joy", "anger"), ("LABEL_0", "positive")])
def test_labels_that_say_nothing_are_refused(classifier, tmp_path, labels):
    with pytest.raises(ValueError, match=f"labels .*{labels[0]}.*id2label"):
        load_sentiment_model(relabel(classifier, tmp_path, labels))


def test_a_local_classifier_judges_the_env(classifier):
    env = TextSentimentEnv(sentiment_model=str(classifier))
    env.reset()
    env.step(int(env.vocabulary.encode("film")[0]))
    *_, info = env.step(env.vocabulary.end_index)
    assert info["sentiment"] == pytest.approx(load_sentiment_model(str(classifier))([" film"])[0])


def test_long_texts_are_cut_with_a_warning(classifier, caplog):
    judge = load_sentiment_model(str(classifier))
    assert np.isfinite(judge(["good film " * 40])).all()
    assert "reads only 16 tokens" in caplog.text


def save_classifier(folder, config, **tokenizer):
    """A tiny classifier of this config with random weights, whose tokenizer names no longest text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **tokenizer).save_pretrained(
        folder
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def test_robertas_positions_begin_behind_the_paddings_index(tmp_path, caplog):
    from transformers import RobertaConfig

    config = RobertaConfig(
        **{"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 18},
        **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    judge = load_sentiment_model(save_classifier(tmp_path, config, pad_token="[UNK]"))
    for n in (15, 16, 17, 40):
        assert np.isfinite(judge(["good " * n])).all()
    assert judge(["good " * 16 + "bad"]) == judge(["good " * 16])
    assert "reads only 16 tokens" in caplog.text


@pytest.mark.parametrize("pad", [None, "[PAD]"])
def test_a_decoder_as_classifier_wants_a_pad_token(tmp_path, pad):
    from transformers import GPT2Config

    config = GPT2Config(
        **{"vocab_size": len(WORDS), "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
        **{"bos_token_id": 2, "eos_token_id": 3},
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    folder = save_classifier(tmp_path, config, **({} if pad is None else {"pad_token": pad}))
    if pad is None:
        with pytest.raises(ValueError, match="no pad token.*set tokenizer.pad_token"):
            load_sentiment_model(folder)
    else:
        judge = load_sentiment_model(folder)
        assert judge(["good", "bad good"])[0] == pytest.approx(judge(["good"])[0], abs=1e-6)


def small_config(name, **kw):
    import transformers

    labels = {
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
    }
    sizes = {
        "BertConfig": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "GPT2Config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 2},
        "XLNetConfig": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
        "BloomConfig": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    }[name]
    kw = {"vocab_size": len(WORDS), "eos_token_id": 3, "initializer_range": 1.0} | sizes | kw
    return getattr(transformers, name)(**kw, **labels)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BertConfig", {}),
        ("GPT2Config", {}),
        ("GPT2Config", {"pad_token_id": 3}),  # not the tokenizer's
        ("XLNetConfig", {}),  # its config names -1 positions, Bloom's none
        ("BloomConfig", {}),
    ],
)
def test_a_score_depends_on_no_other_text_of_the_batch(tmp_path, name, more, side):
    import torch

    torch.manual_seed(0)
    config = small_config(name, **more)
    judge = load_sentiment_model(
        save_classifier(tmp_path, config, pad_token="[PAD]", padding_side=side)
    )
    alone = judge(["good film"])
    assert judge(["good film", "the film a good good film the bad film"])[0] == pytest.approx(
        alone[0], abs=1e-5
    )
    assert np.isfinite(judge(["good film " * 40])).all()


def test_a_directory_that_is_written_again_is_read_again(classifier, tmp_path):
    def judge():
        return TextSentimentEnv(sentiment_model=str(tmp_path)).task._judge

    relabel(classifier, tmp_path, ["NEGATIVE", "POSITIVE"])
    first = judge()
    assert judge() is first  # one for all environments
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "POSITIVE", "1": "NEGATIVE"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert judge()(["good film"]) == -first(["good film"])


@pytest.mark.parametrize("name", ["./nowhere", "some/where/else", "/nowhere", "~nobody/model"])
def test_missing_directory(name):
    with pytest.raises(FileNotFoundError, match="is not a directory.*save_pretrained"):
        load_sentiment_model(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float33"}, "dtype='float33'.*float32"),
        ({"dtype": "int64"}, "dtype='int64'.*float32"),
        ({"dtype": "nn"}, "dtype='nn'.*float32"),
        ({"dtype": 16}, "dtype=16.*float32"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"device": "gpu"}, "device='gpu'.*'cpu'"),
        ({"device": "cuda:99"}, "device='cuda:99'.*'cpu'"),
        ({"device": 1.5}, "device=1.5.*'cpu'"),
        ({"local_files_only": "no"}, "local_files_only='no' must be True or False"),
        ({"allow_pickle": 1}, "allow_pickle=1 must be True or False"),
        ({"revision": 3}, "revision=3"),
    ],
)
def test_bad_options(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        load_sentiment_model(str(classifier), **options)


@pytest.mark.parametrize("name", [3, None, b"vader", "", "a b", "a/\0", "\ud800", "a" * 300])
def test_bad_names(name):
    with pytest.raises(ValueError, match="sentiment_model="):
        load_sentiment_model(name)


def test_bad_device_of_the_bundled_judge():
    with pytest.raises(ValueError, match="device='gpu'"):
        load_sentiment_model("bundled", device="gpu")


# ------------------------------------------------------------- directories that came from elsewhere


@pytest.fixture
def copy(classifier, tmp_path):
    """A copy of the classifier's directory to be spoilt."""
    return Path(shutil.copytree(classifier, tmp_path / "copy"))


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    """A file that hostile code would write; asks on the terminal are answered with yes."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *args: asked.append(args) or "y")
    marker = tmp_path / "code ran"
    yield marker
    assert not marker.exists()
    assert asked == []


class WritesAFile:
    """A pickle of this object writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", ["bert", "own"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_the_directory_never_runs(copy, nothing_runs, file, model_type):
    code = f"import pathlib; pathlib.Path({str(nothing_runs)!r}).write_text('ran')"
    (copy / "own.py").write_text(code)
    names = ("AutoConfig", "AutoModelForSequenceClassification", "AutoModel")
    auto_map = {name: "own.Own" for name in names}
    edit_json(copy / file, auto_map=auto_map | {"AutoTokenizer": ["own.Own", "own.Own"]})
    if file == "config.json":
        edit_json(copy / file, model_type=model_type, architectures=["Own"])
    else:
        edit_json(copy / file, tokenizer_class="Own" if model_type == "own" else "BertTokenizer")
    try:
        judge = load_sentiment_model(str(copy))
    except OSError as error:
        assert "code" in str(error)  # noqa: PT017
    else:
        assert np.isfinite(judge(TEXTS)).all()  # by the library's own classes


def save_with_torch(path, weights):
    import torch

    torch.save(weights, path)


def save_with_pickle(path, weights):
    path.write_bytes(pickle.dumps(weights))


@pytest.mark.parametrize("save", [save_with_torch, save_with_pickle])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_hostile_pickle_never_runs(copy, nothing_runs, save, allow_pickle):
    (copy / "model.safetensors").unlink()
    save(copy / "pytorch_model.bin", {"classifier.bias": WritesAFile(nothing_runs)})
    with pytest.raises(OSError, match="could not be loaded") as error:
        load_sentiment_model(str(copy), allow_pickle=allow_pickle)
    assert ("allow_pickle=True" in str(error.value)) is not allow_pickle


def test_a_pickle_beside_safetensors_is_not_read(copy, nothing_runs):
    save_with_torch(copy / "pytorch_model.bin", {"classifier.bias": WritesAFile(nothing_runs)})
    load_sentiment_model(str(copy))
    load_sentiment_model(str(copy), allow_pickle=True)


def test_pickled_weights_by_request(classifier, copy):
    from safetensors.torch import load_file

    save_with_torch(copy / "pytorch_model.bin", load_file(copy / "model.safetensors"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(OSError, match="allow_pickle=True"):
        load_sentiment_model(str(copy))
    judge = load_sentiment_model(str(copy), allow_pickle=True)
    assert judge(TEXTS) == pytest.approx(load_sentiment_model(str(classifier))(TEXTS))


def test_a_model_without_a_trained_head_is_refused(copy):
    from transformers import BertModel

    BertModel.from_pretrained(copy).save_pretrained(copy)
    with pytest.raises(ValueError, match="no trained classification head.*classifier.weight"):
        load_sentiment_model(str(copy))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "bert", "hidden_size": "x"}'),
        ("config.json", b'{"model_type": 3}'),
        ("config.json", b"\xff\xfe"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"null"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", None),
    ],
)
def test_damaged_files(copy, file, content):
    path = copy / file
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(OSError, match="sentiment_model=.*could not be loaded"):
        load_sentiment_model(str(copy))


def test_weights_of_another_shape(copy):
    edit_json(copy / "config.json", hidden_size=32)
    with pytest.raises(OSError, match="could not be loaded"):
        load_sentiment_model(str(copy))


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(OSError, match="could not be loaded"):
        load_sentiment_model(str(tmp_path))


# ------------------------------------------------------------------------------------------ the hub


class Hub(SimpleHTTPRequestHandler):
    """The Hugging Face hub's answers for one public model, whose files lie in `directory`."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        start = "/someone/judge/resolve/main/"
        file = Path(self.directory) / self.path.removeprefix(start)
        found = self.path.startswith(start) and file.is_file()
        content = file.read_bytes() if found else b"{}"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", f'"{hash(content)}"')
        elif "/someone/judge/" in self.path:
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(classifier, tmp_path, monkeypatch):
    """A function that makes an address the hub's, with an empty cache; and a working hub's address."""
    from huggingface_hub import constants

    cache = str(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=classifier))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def use(address):
        path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
        monkeypatch.setattr(constants, "ENDPOINT", address)

    yield use, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_model_of_the_hub_and_its_cache_without_the_hub(classifier, hub, silent):
    use, address = hub
    expected = load_sentiment_model(str(classifier))(TEXTS)
    use(address)
    assert load_sentiment_model("someone/judge")(TEXTS) == pytest.approx(expected)
    use(silent)
    start = time.perf_counter()
    assert load_sentiment_model("someone/judge")(TEXTS) == pytest.approx(expected)
    assert time.perf_counter() - start < 9  # the hub library waits for 10 s


def test_a_model_that_the_hub_does_not_have(hub):
    use, address = hub
    use(address)
    with pytest.raises(OSError, match="'someone/else' could not be loaded.*hub.*404"):
        load_sentiment_model("someone/else")


@pytest.mark.parametrize("fault", ["silent", "closed", "no name", "name server hangs", "offline"])
def test_an_unreachable_hub_answers_soon(hub, silent, monkeypatch, fault):
    from huggingface_hub import constants

    use, _ = hub
    use({"silent": silent, "closed": "http://127.0.0.1:9"}.get(fault, "http://hub.invalid"))
    if fault == "name server hangs":
        real = socket.getaddrinfo
        slow = lambda *args, **options: time.sleep(20) or real(*args, **options)  # noqa: E731
        monkeypatch.setattr(socket, "getaddrinfo", slow)
    if fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    environment = dict(os.environ)
    start = time.perf_counter()
    with pytest.raises(OSError, match="hub.*path of a directory"):
        load_sentiment_model("nobody/no-such-model")
    assert time.perf_counter() - start < 9  # the hub library waits for 10 s
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("name", "near"), [("vade", "vader"), ("VADER", "vader"), ("bundle", "bundled")]
)
def test_a_misspelt_name_is_not_asked_of_the_hub(monkeypatch, name, near):
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: 1 / 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: 1 / 0)
    with pytest.raises(ValueError, match=f"sentiment_model='{name}'.*did you mean '{near}'"):
        load_sentiment_model(name)
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        TextSentimentEnv(sentiment_model=name)


def test_local_files_only_asks_no_hub(hub, silent):
    use, _ = hub
    use(silent)
    start = time.perf_counter()
    with pytest.raises(OSError, match="could not be loaded"):
        load_sentiment_model("nobody/no-such-model", local_files_only=True)
    assert time.perf_counter() - start < 9  # the hub library waits for 10 s
