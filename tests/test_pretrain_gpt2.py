"""The training of the bundled model: texts, vocabulary, stages, exact resume, report."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from agents.gpt2 import GPT2, GPT2Config
from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary, gpt2_encoding

FOLDER = Path(__file__).parent.parent / "examples" / "pretrain_gpt2"
sys.path.insert(0, str(FOLDER))
import pretrain  # noqa: E402
import review_batches  # noqa: E402
import review_language_model  # noqa: E402
import review_ngrams  # noqa: E402
import review_report  # noqa: E402
import review_texts  # noqa: E402
import review_training  # noqa: E402
import review_vocabulary  # noqa: E402


def _gpt2_ids(text):
    return gpt2_encoding().encode_ordinary(text)


@pytest.mark.parametrize(
    ("review", "sentences"),
    [
        ("I liked it.<br />Mr. A. Smith was good. Bye!", ["I liked it.", "Mr. A. Smith was good."]),
        ("It  is\na good film. But why? And so on...", []),
        ("It is a thin plot. THIS IS BAD! Visit www.example.com today.", ["It is a thin plot."]),
        ('He said "this is good. The end.', []),
        ("The café is nice. Nobody knows who (or why).", ["Nobody knows who (or why)."]),
    ],
)  # fmt: skip
def test_clean_sentences(review, sentences):
    assert review_texts.clean_sentences([review, review]) == sentences


@pytest.mark.parametrize(
    ("sentence", "clauses"),
    [
        (
            "The plot is really thin, but the actors are all good.",
            ["The plot is really thin.", "The actors are all good."],
        ),
        (
            "It was very long because nobody had cut it.",
            ["It was very long.", "Nobody had cut it."],
        ),
        ("If you like it, the rest is easy; it gets better.", []),  # "If you like it." is no whole
        ("The cast, and everything about the end!", []),  # without a verb
        ("I really liked the story, and laughed about it.", ["I really liked the story."]),
        ("Is it a good film, or is it not?", []),
        ("The acting was good.", []),
    ],
)
def test_clauses_stand_alone(sentence, clauses):
    assert review_texts.clauses(sentence) == clauses


def test_passages_are_consecutive_clean_sentences():
    review = "It is good. I liked it. See www.example.com today.<br />It ends well. It is fun."
    assert review_texts.passages([review]) == [
        "It is good. I liked it.",
        "It ends well. It is fun.",
    ]


def test_as_small_is_written_with_the_small_vocabulary():
    text = review_texts.as_small("The acting is good, and I loved the story!")
    assert text == " the acting is good, and I loved the story!"
    assert Vocabulary.load("small").decode(Vocabulary.load("small").encode(text)) == text


def test_shared_runs_are_found_whatever_their_case():
    reviews = ["One two three four five<br />six seven eight nine ten. Eleven."]
    samples = [
        "So Two three four five six seven eight nine ten. What",
        "one two three four",
        "a " * 9,
    ]
    assert review_texts.shared_runs(samples, reviews) == {0: 9}


def test_gpt2_merges_are_the_bytes_of_their_parts():
    vocabulary = Vocabulary.load("gpt2")
    merges = review_vocabulary.gpt2_merges()
    assert len(merges) == END_OF_TEXT_ID
    assert merges[:256] == [None] * 256
    for token in (256, 5000, 50255):
        left, right = merges[token]
        assert (
            vocabulary.token_bytes[left] + vocabulary.token_bytes[right]
            == (vocabulary.token_bytes[token])
        )


def test_chosen_vocabulary_keeps_the_frequent_and_what_they_are_merged_from():
    ids = _gpt2_ids(" wonderful acting acting")
    counts = np.bincount(ids, minlength=END_OF_TEXT_ID + 1)
    small = Vocabulary.load("small").token_ids.tolist()[:-1]
    chosen = review_vocabulary.choose_vocabulary(counts, 600, small)
    kept = set(chosen.token_ids.tolist())
    assert len(chosen) == 600
    assert kept >= {*range(256), *small, *ids, END_OF_TEXT_ID}
    merges = review_vocabulary.gpt2_merges()
    assert all(kept.issuperset(merges[t]) for t in kept - {END_OF_TEXT_ID} if merges[t])
    with pytest.raises(ValueError, match="too small"):
        review_vocabulary.choose_vocabulary(counts, 300, small)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("I didn't like it, sadly.", "I didn't like it, sadly."),
        (" it was good!", " it was good!"),
        ("A well-made film.", "A well"),  # a hyphen is no plain sign
        ("It lacks cinematography.", "It lacks"),  # " cin" is a token, but not the whole word
        ("the end.", ""),  # neither a capital nor a space before it
        ('He said "no".', "He said"),
    ],
)
def test_plain_length_ends_before_the_first_part_of_a_word(text, plain):
    ids = _gpt2_ids(text)
    assert gpt2_encoding().decode(ids[: review_vocabulary.plain_length(ids)]) == plain


def test_plain_length_ends_before_an_unknown_word():
    ids = _gpt2_ids("The film is good.")
    assert review_vocabulary.plain_length(ids, set(ids)) == 5
    assert review_vocabulary.plain_length(ids, set(ids) - {ids[3]}) == 3


def test_known_words_are_frequent_in_sentences_of_known_words_alone():
    texts = ["The film is good."] * 3 + ["The film is bizarre."] * 2
    ids = [_gpt2_ids(text) for text in texts]
    known = review_batches.known_words(ids, Vocabulary(sorted({i for t in ids for i in t})), 3)
    assert known == set(ids[0])
    # "bizarre" is too rare; without its two sentences "film" is.
    assert not review_batches.known_words(ids, Vocabulary(sorted({i for t in ids for i in t})), 4)


def test_sentences_for_small_come_more_often_the_nearer_they_are_to_it():
    vocabulary = Vocabulary.load("gpt2")
    known = set(range(END_OF_TEXT_ID))
    texts = ["The movie is great.", "The purple movie is great.", "Purple giraffes eat apples."]
    corpus = review_batches.small_corpus(texts, known, vocabulary)
    assert [vocabulary.decode(text) for text in corpus.texts] == [
        " the movie is great.",
        " the purple movie is great.",
    ]
    assert corpus.repeats.tolist() == [4, 3]


def _corpus(texts, repeats):
    return review_batches.Corpus(texts, repeats, np.ones(len(texts), bool))


def test_batches_hold_every_text_as_often_as_it_repeats_within_the_budget():
    rng = np.random.default_rng(0)
    texts = [np.zeros(n, np.int32) for n in rng.integers(1, 60, 3000)]
    corpus = _corpus(texts, rng.integers(1, 4, 3000))
    chunks = review_batches.batches(corpus, 1024, seed=1, epoch=0)
    sizes = [len(chunk) * max(len(texts[i]) + 1 for i in chunk) for chunk in chunks]
    assert max(sizes) <= 1024
    assert np.array_equal(np.bincount(np.concatenate(chunks)), corpus.repeats)
    assert sum(len(texts[i]) + 1 for c in chunks for i in c) > 0.9 * sum(sizes)  # little padding
    again, other = (review_batches.batches(corpus, 1024, 1, epoch) for epoch in (0, 1))
    assert all(map(np.array_equal, chunks, again))
    assert not np.array_equal(np.concatenate(chunks), np.concatenate(other))


def test_batches_go_on_from_any_step():
    texts = [np.full(1, i) for i in range(20)]
    corpus = _corpus(texts, np.ones(20, int))
    stream = review_batches.batches_from(corpus, 8, 0, 0)
    five = [next(stream)[0] for _ in range(9)]
    later = review_batches.batches_from(corpus, 8, 0, 7)
    assert five[7:] == [next(later)[0] for _ in range(2)]


def test_texts_begin_and_end_with_end_of_text_unless_they_go_on():
    texts = [np.array([1, 2, 3]), np.array([4])]
    inputs, targets = review_batches.collate(texts, end=9)
    assert inputs.tolist() == [[9, 1, 2, 3], [9, 4, 9, 9]]
    assert targets.tolist() == [[1, 2, 3, 9], [4, 9, -100, -100]]
    _, targets = review_batches.collate(texts, end=9, whole=np.array([False, True]))
    assert targets.tolist() == [[1, 2, 3, -100], [4, 9, -100, -100]]
    inputs, targets = review_batches.collate([np.array([1])], end=9, rows=2)
    assert inputs.tolist() == [[9, 1], [9, 9]]
    assert targets.tolist() == [[1, 9], [-100, -100]]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=12, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        gpt2.wte.weight.mul_(8)  # so that some tokens are likelier than others
        gpt2.wte.weight[-1] = 0  # the end would follow the start
    return gpt2


def test_training_loss_is_the_mean_over_the_targets(tiny):
    texts = [np.array([1, 2, 3]), np.array([4])]
    inputs, targets = review_batches.collate(texts, end=11)
    loss = review_training.training_loss(tiny, inputs, targets)
    wanted = F.cross_entropy(tiny(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, wanted)
    nats, tokens = review_training.nats_and_tokens(tiny, texts)
    assert tokens == 6
    assert nats / tokens == pytest.approx(loss.item(), rel=1e-5)


def test_divided_logits_are_those_of_the_temperature(tiny):
    model, ids = copy.deepcopy(tiny), torch.tensor([[11, 1, 2, 3]])
    pretrain.divide_logits(model, 0.8)
    torch.testing.assert_close(model(ids), tiny(ids) / 0.8)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    args = pretrain.Args(lr=1.0, warmup=4, decay=0.5)
    rates = [review_training.lr_at(step, 20, args) for step in range(20)]
    assert rates[:10] == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert rates[10:] == pytest.approx(np.arange(10, 0, -1) / 10)


def test_a_text_is_of_words_alone_if_people_write_each_of_them():
    words = review_report.frequent_words(["The film's<br />good. The end."] * 4 + ["Film's it"])
    assert words == {"the", "film's"}
    words = review_report.frequent_words(["The film's<br />good. The end."] * 5)
    assert words == {"the", "film's", "good", "end"}
    texts = ["The end, the film's good!", "theThe end", "The good10 end", "..."]
    assert review_report.of_words_alone(texts, words) == 0.25


def test_sentences_of_like_length_have_those_lengths_and_are_used_once():
    sentences = ["It is good.", "It is bad.", "The film is good."]
    found = review_report.like_lengths([4, 4, 4, 5, 9], sentences, seed=0)
    assert sorted(found) == sorted(sentences)


def _smoke(work, *options):
    return pretrain.main(["--smoke", "--quiet", "--device=cpu", f"--work={work}", *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("whole")
    return work, _smoke(work, "--seed=3")


REVIEWS = ["The film is good.", "The film is bad.", "A good film.", "The acting is so good."]


@given(st.lists(st.sampled_from(["the", "film", "is", "good", "acting", "unseen"]), max_size=4))
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_ngram_readers_probabilities_of_the_next_word_sum_to_one(order, history):
    ngrams = review_ngrams.NgramReader([*REVIEWS, *REVIEWS[1:]], order)
    place = len(history)
    nexts = [" ".join([*history, word]) for word in [*ngrams.row, "unknown"]]
    logs = [log[place] for log in ngrams.log_probabilities(nexts)]
    logs.append(ngrams.log_probabilities([" ".join(history)])[0][place])  # the end
    assert np.exp(logs).sum() == pytest.approx(1)


def test_the_ngram_reader_by_hand():
    ngrams = review_ngrams.NgramReader(["a b", "a b", "a c", "a c", "c"], order=2)
    # Pairs: START a 4, START c 1, a b 2, a c 2, b END 2, c END 3. Two before c, two before END, one
    # before a, one before b. One pair once, three twice, so D = 1 / (1 + 6); alone, 2 and 2: 2 / 6.
    alone = (2 - 1 / 3) / 6 + 4 * (1 / 3) / 6 / (ngrams.size - 1)
    pair = (2 - 1 / 7) / 4 + 2 * (1 / 7) / 4 * alone
    assert np.exp(ngrams.log_probabilities(["a c"])[0][1]) == pytest.approx(pair)
    assert len(ngrams) == 4 + 6


def test_the_ngram_reader_tells_sentences_from_shuffled_ones():
    ngrams = review_ngrams.NgramReader(REVIEWS * 2)
    assert (
        ngrams.perplexities(["The film is so good."])["perplexity"]
        < ngrams.perplexities(["good The so film. is"])["perplexity"]
    )


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A folder with a GPT-2 of transformers and a tokenizer, as the hub has them."""
    folder = tmp_path_factory.mktemp("language model")
    words = ["the", "film", "is", "good", "bad", "<unk>", "a", "sentence", "from", "review"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=32, n_embd=16, n_layer=2, n_head=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.transformer.wte.weight.data *= 30  # so that texts differ
    model.save_pretrained(folder)
    return folder


def test_the_language_model_readers_perplexity_is_that_of_transformers_own_loss(language_model):
    texts = [" the film is good bad", "good", "is the good film a bad film"]
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(language_model)
    context = tokenizer(review_language_model.CONTEXT)["input_ids"]
    nats, tokens = 0.0, 0
    for text in texts:  # alone, so without any padding
        row = tokenizer(f"{text.strip()}\n")["input_ids"]
        labels = torch.tensor([[-100] * len(context) + row])
        loss = model(input_ids=torch.tensor([context + row]), labels=labels).loss.item()
        nats, tokens = nats + loss * len(row), tokens + len(row)
    reader = review_language_model.LanguageModelReader(str(language_model), "cpu")
    found = reader.perplexities(texts)
    assert found["sentences"] == 3
    assert found["perplexity_per_token"] == pytest.approx(np.exp(nats / tokens), rel=1e-4)
    assert found["perplexity_per_word"] == pytest.approx(np.exp(nats / 13), rel=1e-4)


def test_a_fine_tuned_language_model_reader_expects_what_it_learned(language_model):
    reader = review_language_model.LanguageModelReader(str(language_model), "cpu")
    learned, other = ["the film is good"], ["bad is film the"]
    before = [reader.perplexities(texts)["nats_per_token"] for texts in (learned, other)]
    reader.fine_tune(learned * 40, lr=1e-2, batch_size=2, quiet=True)
    after = [reader.perplexities(texts)["nats_per_token"] for texts in (learned, other)]
    assert after[0] < before[0] / 4
    assert after[0] < after[1] / 4


def test_report_with_a_language_model_as_reader(whole, language_model, tmp_path):
    arguments = (tmp_path, f"--evaluate={whole[0]}/model", f"--reader={language_model}", "--quiet")
    report, tuned = _smoke(*arguments), _smoke(*arguments, "--reader-sentences=20")
    for group in ("reviews", "people"):
        before, after = (
            r["texts"][group]["read_by_language model"]["perplexity_per_word"]
            for r in (report, tuned)
        )
        assert 1 < after < before


def test_a_reader_that_is_not_there_ends_in_one_line(whole, tmp_path, capsys):
    missing = tmp_path / "model.gguf"
    arguments = (tmp_path, f"--evaluate={whole[0]}/model", f"--reader={missing}")
    assert "model.gguf" in _error(capsys, _smoke, *arguments)


def test_smoke_run_learns_and_reports(whole):
    work, report = whole
    losses = list(report["training"]["validation"].values())
    assert losses[-1] < losses[0] - 0.5
    saved = json.loads((work / "report.json").read_text())
    assert saved["texts"]["small"]["texts"] == 20
    within = saved["predictions"]["plain sentences within the vocabulary"]
    assert within["perplexity_per_word"] > 1
    # All sentences of the made-up grammar are of words that its training reviews hold.
    assert saved["texts"]["people"]["words_alone"] == 1


def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path):
    work, report = whole
    for stop_at in (15, 20):  # within a stage, and between the two
        _smoke(tmp_path, "--seed=3", f"--stop-at={stop_at}")
        assert not (tmp_path / "report.json").exists()
    resumed = _smoke(tmp_path, "--seed=3")
    assert resumed["training"]["tokens"] == report["training"]["tokens"]
    for name in ("model.safetensors", "config.json"):
        assert (work / "model" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_report_beside_another_model(whole, tmp_path):
    model = f"{whole[0]}/model"
    report = _smoke(tmp_path, f"--evaluate={model}", f"--compare={model}")
    assert "training" not in report
    both = report["predictions"]["plain sentences within both vocabularies"]
    assert both["this"] == both["compared"]
    assert report["examples"]["compared"] == report["examples"]["reviews"]
    assert report["texts"]["people"]["read_by_compared"]["nats_per_token"] > 0


def test_another_runs_checkpoint_is_refused(tmp_path, capsys):
    _smoke(tmp_path, "--stop-at=10")
    assert "another --work" in _error(capsys, _smoke, tmp_path, "--seed=4")


def test_a_checkpoint_of_other_texts_is_refused(tmp_path, capsys):
    _smoke(tmp_path, "--stop-at=10")
    vocabulary = (tmp_path / "vocabulary.json").read_bytes()
    for other in ("--longest=5", "--n-embd=64", "--seed=1"):
        assert "another --work" in _error(capsys, _smoke, tmp_path, other)
    assert (tmp_path / "vocabulary.json").read_bytes() == vocabulary


@pytest.mark.parametrize(
    "flag",
    ["--save-every=0", "--temperature=0", "--temperature=-1", "--report-samples=0", "--device=no"],
)
def test_bad_numbers_are_refused_before_the_training(flag, tmp_path, capsys):
    assert flag.partition("=")[0] in _error(capsys, _smoke, tmp_path, flag)
    assert not any(tmp_path.iterdir())


def _error(capsys, function, *arguments):
    """The one line in which bad input ends."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def test_missing_data_says_what_to_do(tmp_path, monkeypatch, capsys):
    arguments = [f"--data={tmp_path}", f"--work={tmp_path}"]
    assert "holds no imdb_train.jsonl" in _error(capsys, pretrain.main, arguments)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in _error(capsys, pretrain.main, [f"--work={tmp_path}"])


def test_help_explains_every_option():
    text = subprocess.run(
        [sys.executable, FOLDER / "pretrain.py", "--help"], capture_output=True, text=True
    ).stdout
    for name in ("--data", "--temperature", "--compare"):
        assert name in text
    assert "held-out reviews" in text
