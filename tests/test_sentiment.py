import json

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


@pytest.mark.parametrize("name", ["./nowhere", "some/where/else", "/nowhere"])
def test_missing_directory(name):
    with pytest.raises(FileNotFoundError, match="is not a directory.*save_pretrained"):
        load_sentiment_model(name)


def test_no_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="hub.*can't be reached.*path of a directory"):
        load_sentiment_model("nobody/no-such-model", local_files_only=True)


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(OSError, match="could not be loaded"):
        load_sentiment_model(str(tmp_path))
