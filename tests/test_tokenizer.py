"""Saved models in transformers' own hands: tokenizer, pipeline, sampling."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import GPT2, GPT2Config
from text_sentiment_env import Vocabulary

NAMES = ["reviews", "gpt2", "small"]
REVIEW = "I didn't think that this film, of 1985, was worth  watching.\nBut it's GREAT!"


def save(folder, vocabulary):
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=32,
        n_embd=8,
        n_layer=1,
        n_head=1,
        token_ids=tuple(vocabulary.token_ids.tolist()),
    )
    torch.manual_seed(0)
    gpt2 = GPT2(config)
    gpt2.save_pretrained(folder)
    return gpt2


@pytest.fixture(scope="module", params=NAMES)
def saved(request, tmp_path_factory):
    """A folder with a model of each vocabulary, transformers' tokenizer of it, the vocabulary."""
    folder = tmp_path_factory.mktemp("models") / request.param
    vocabulary = Vocabulary.load(request.param)
    save(folder, vocabulary)
    return folder, transformers.AutoTokenizer.from_pretrained(folder), vocabulary


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    words=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
    text=st.text(max_size=30) | st.text("aeiorst'., THE\n\té1", max_size=40),
)
def test_tokens_and_texts_are_the_vocabularys(saved, data, words, text):
    _, tokenizer, vocabulary = saved
    if len(vocabulary) > 256:  # encodes anything
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if "<|endoftext|>" not in text:
            assert ids == vocabulary.encode(text).tolist()
            assert tokenizer.decode(ids) == vocabulary.decode(ids)
    rows = [word % (len(vocabulary) - 1) for word in words]
    written = vocabulary.decode(rows)
    assert tokenizer.decode(rows) == written
    try:
        expected = vocabulary.encode(written).tolist()
    except ValueError:  # word lists do not hold every text that they can write
        return
    assert tokenizer(written, add_special_tokens=False).input_ids == expected


def test_marks_of_a_word_list_are_words_of_their_own(saved):
    _, tokenizer, vocabulary = saved
    for text in (" good film!!", " great,.", " good.!, film"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        try:
            assert ids == vocabulary.encode(text).tolist()
        except ValueError:  # to GPT-2 "!!" is a token, which the list does not hold
            assert tokenizer.decode(ids) == text


def test_a_text_stands_behind_end_of_text(saved):
    _, tokenizer, vocabulary = saved
    assert len(tokenizer) == len(vocabulary)
    ids = tokenizer(" good film.").input_ids
    assert ids == [vocabulary.end_index, *vocabulary.encode(" good film.").tolist()]
    assert tokenizer("").input_ids == [vocabulary.end_index]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " good film."
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert ends == {vocabulary.end_index}


def test_a_review_is_encoded_as_by_the_vocabulary(saved):
    _, tokenizer, vocabulary = saved
    if len(vocabulary) > 256:
        ids = tokenizer(REVIEW, add_special_tokens=False).input_ids
        assert ids == vocabulary.encode(REVIEW).tolist()
    else:  # the first word gets the space that the vocabulary's words have
        ids = tokenizer("the movie is not good.", add_special_tokens=False).input_ids
        assert ids == vocabulary.encode("the movie is not good.").tolist()
        with pytest.raises(Exception, match="unk|UNK|WordLevel"):
            tokenizer("the screenplay")


@pytest.mark.parametrize(
    "words",
    [
        ["The", " the", " food", " was", " good", " bad", ".", "!", " very", "'s"],
        ["The", " The", "It", "'s", " it", "20", " 20", " (", ")", " food", "food"],
        [" food", " good"],
    ],
)
def test_words_without_a_leading_space_begin_a_text_as_they_are(words, tmp_path):
    vocabulary = Vocabulary.load(words)
    save(tmp_path, vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = 0
    texts = ["The food was good.", " The", "the food was bad!", "!", "'s very good", "food good"]
    for text in [*texts, "It's food", "20 food", "2020", "(20)", " (20)", "Them", "  food"]:
        try:
            expected = vocabulary.encode(text).tolist()
        except ValueError:
            with pytest.raises(Exception, match="unk|UNK|WordLevel"):
                tokenizer(text)
        else:
            assert tokenizer(text, add_special_tokens=False).input_ids == expected, text
            encoded += 1
    assert encoded


def test_the_pipeline_samples_the_models_own_texts(saved):
    folder, _, vocabulary = saved
    write = transformers.pipeline("text-generation", model=str(folder))
    transformers.set_seed(0)
    texts = write([" good film"] * 8, max_new_tokens=6, return_full_text=True)
    written = [text["generated_text"] for (text,) in texts]
    assert all(text.startswith(" good film") for text in written)
    assert len(set(written)) > 4, "a draw, not the likeliest token"
    values = json.loads((folder / "generation_config.json").read_text())
    assert values["top_k"] == 0, "the whole softmax"
    assert values["eos_token_id"] == vocabulary.end_index


def test_a_model_without_a_vocabulary_gets_no_tokenizer(tmp_path):
    GPT2(GPT2Config(vocab_size=7, n_positions=4, n_embd=4, n_layer=1, n_head=1)).save_pretrained(
        tmp_path
    )
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
