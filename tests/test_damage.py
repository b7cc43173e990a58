"""Files that are damaged, wrong or hostile: refused with a message, and nothing in them runs."""

import copy
import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from reinforce_helpers import PROMPTS, TINY, learn, make_envs
from test_checkpoint import everything, make

from agents import GPT2, REINFORCE, GPT2Config

VALUES = [
    *(None, True, "x", -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**9, 10**20),
    *([], {}, [1], {"a": 1}),
]


@pytest.fixture(scope="module")
def model():
    return learn(make(), 2)


@pytest.fixture(scope="module")
def members(model):
    """The contents of a checkpoint's members, without the manifest."""
    file = io.BytesIO()
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        return {n: archive.read(n) for n in archive.namelist() if n != "manifest.json"}


def manifest(members):
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    return json.dumps(digests).encode()


def zipped(members, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicates
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file


def archive(members):
    return zipped({**members, "manifest.json": manifest(members)})


def load(file, env=None):
    """The loaded model, or None if it is refused in one line."""
    file.seek(0)
    try:
        return REINFORCE.load(file, env=env)
    except ValueError as error:
        message = str(error)
    assert 10 < len(message) < 2000
    assert "\n" not in message
    return None


def saved(model):
    file = io.BytesIO()
    model.save(file)
    return json.loads(zipfile.ZipFile(file).read("checkpoint.json"))


# --------------------------------------------------------------------------------------- damage


def test_flipped_bytes_and_cut_files_are_refused(model, members):
    """Or change nothing: zip files hold dates and attributes that nobody reads."""
    whole, expected = archive(members).getvalue(), everything(model)
    draw = random.Random(0)
    cases = [whole[: draw.randrange(len(whole))] for _ in range(100)]
    places = draw.sample(range(len(whole)), 200)
    places += draw.sample(range(len(whole) - 700, len(whole)), 200)  # the list of members
    places += range(30)
    for place in places:
        cases.append(bytearray(whole))
        cases[-1][place] ^= 1 << draw.randrange(8)
    refused = 0
    for case in cases:
        again = load(io.BytesIO(case))
        refused += again is None
        assert again is None or torch.equal(everything(again), expected)
        assert again is None or again._n_updates == 2
    assert refused > 350


def places(data, at=()):
    yield at
    items = data.items() if isinstance(data, dict) else enumerate(data[:3])
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))
        else:
            yield (*at, key)


def altered(data, place, value):
    """The data with another value at a place; `places` itself: without the entry."""
    if not place:
        return value
    data = copy.deepcopy(data)
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    if value is places:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return data


def test_wrong_contents_in_a_whole_archive_are_refused(members):
    """What is loaded all the same is a state that a run could have: it is saved as it was."""
    data = json.loads(members["checkpoint.json"])
    cases = [(place, value) for place in places(data) for value in (*VALUES, places)][15 + 1 :]
    optional = {("other_ranks",), ("policy_kwargs", "precision"), ("algorithm",)}
    loaded = 0
    for place, value in random.Random(1).sample(cases, 600):
        wrong = altered(data, place, value)
        text = json.dumps(wrong)
        if (value is places and place in optional) or text == json.dumps(data):
            continue
        if place == ("algorithm",) and isinstance(value, str):  # of another class, with a warning
            continue
        again = load(
            archive(members | {"checkpoint.json": text.encode()}), make_envs(4, prompts=PROMPTS)
        )
        if again is not None:
            loaded += 1
            assert json.dumps(saved(again), sort_keys=True) == json.dumps(wrong, sort_keys=True)
    assert loaded < 60


@pytest.mark.parametrize("value", [*VALUES, places], ids=[*map(str, VALUES), "a function"])
def test_wrong_entries_of_every_part_are_refused(members, value):
    """Entries of which these values are never ones."""
    data = json.loads(members["checkpoint.json"])
    whole = value in (0, 10**9) and value is not True
    for place in [
        (),
        *([] if value in ("x", places) else [("algorithm",)]),
        ("arguments",),
        ("arguments", "baseline"),
        ("policy_kwargs", "config", "n_inner"),
        ("policy_kwargs", "config", "eos_token_id"),
        ("counters",),
        *(
            []
            if whole
            else [("counters", "_n_updates"), ("random_state", "generators", 0, "uinteger")]
        ),
        ("optimizer_groups", 0, "betas"),
        ("optimizer_groups", 0, "amsgrad"),
        ("prompt_generator", "state"),
        ("random_state", "numpy", "state", "key"),
        ("random_state", "cuda"),
    ]:
        if (place, value) in [((), places), (("random_state", "cuda"), [])]:
            continue
        wrong = altered(data, place, value)
        if wrong != data:
            text = json.dumps(wrong).encode()
            assert load(archive(members | {"checkpoint.json": text})) is None, place


@pytest.mark.parametrize("part", ["policy", "optimizer", "reference", "baseline"])
def test_wrong_tensors_in_a_whole_archive_are_refused(members, part):
    name = f"{part}.safetensors"
    tensors = safetensors.torch.load(members[name])
    key = next(iter(tensors))
    for wrong in (
        *([tensors | {"other": torch.zeros(2)}]),
        *([{k: t for k, t in tensors.items() if k != key}] if part != "baseline" else []),
        tensors | {key: torch.zeros(2, 3, 4)},
        tensors | {key: tensors[key] * float("nan")},
    ):
        content = members | {name: safetensors.torch.save(wrong)}
        assert load(archive(content)) is None
    dtypes = members | {name: safetensors.torch.save({k: t.half() for k, t in tensors.items()})}
    assert part in ("optimizer", "baseline") or load(archive(dtypes)) is None


# -------------------------------------------------------------------------------------- hostility


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def header(tensors):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def overlapping(members):
    """A thousand members whose list names the same bytes."""
    file = zipped({"checkpoint.json": members["checkpoint.json"]})
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(1000):
            info = copy.copy(archive.getinfo("checkpoint.json"))
            info.filename = f"{i}.safetensors"
            archive.filelist.append(info)
        archive._didModify = True
    return file


def encrypted(members):
    content = bytearray(archive(members).getvalue())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return io.BytesIO(content)


HUGE = {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}
HOSTILE = {
    "zip bomb": lambda m: zipped(
        m | {"policy.safetensors": bytes(10**9)}, compression=zipfile.ZIP_DEFLATED
    ),
    "overlapping members": overlapping,
    "another folder": lambda m: archive({f"a/{name}": content for name, content in m.items()}),
    "a member in a folder": lambda m: archive({**m, "gpt2/config.json": b"{}"}),
    "path traversal": lambda m: archive({**m, "../../evil": b"evil"}),
    "an absolute path": lambda m: archive({**m, "/tmp/evil": b"evil"}),
    "duplicates": lambda m: zipped([*m.items(), *m.items(), ("manifest.json", manifest(m))]),
    "encrypted": encrypted,
    "huge shape": lambda m: archive(m | {"policy.safetensors": header(HUGE) + bytes(4)}),
    "huge header": lambda m: archive(m | {"policy.safetensors": struct.pack("<Q", 2**62)}),
    "deep JSON": lambda m: archive(m | {"checkpoint.json": b"[" * 10**6}),
    "long number": lambda m: archive(m | {"checkpoint.json": b"9" * 10**6}),
    "a list as manifest": lambda m: zipped({**m, "manifest.json": b"[1]"}),
    "a number as manifest": lambda m: zipped({**m, "manifest.json": b"1"}),
    "other bytes as manifest": lambda m: zipped({**m, "manifest.json": b"\xff"}),
}


def growth(function):
    """By how many bytes a child's peak of memory grows."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            function()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(writer, str((after - before) * 1024).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        told = file.read()
    os.waitpid(pid, 0)
    assert told, "the function failed"
    return int(told)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("make_file", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives_are_refused_within_little_memory(members, make_file):
    file = make_file(members)

    def refused():
        assert load(file) is None

    refused()
    assert growth(refused) < 64e6


@pytest.mark.parametrize(
    "name", ["policy.pth", "data.pkl", "checkpoint.json", "policy.safetensors"]
)
def test_pickles_in_an_archive_do_not_run(members, name, tmp_path):
    evil = pickle.dumps(Malicious(tmp_path / "ran"))
    for file in (archive({**members, name: evil}), zipped({"data": evil, name: evil})):
        assert load(file) is None
    (tmp_path / "run.zip").write_bytes(evil)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        REINFORCE.load(tmp_path / "run.zip")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------ gpt2/


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=3, **TINY, token_ids=(5, 6, 50256))
    GPT2(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def read(folder):
    """The loaded model, or None if it is refused."""
    try:
        return GPT2.from_pretrained(folder)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    assert 10 < len(message) < 2000
    return None


def test_flipped_bytes_of_weights_are_refused(folder):
    """Or leave the weights as they are: a flip in the checksum's name."""
    weights, file = read(folder).state_dict(), folder / "model.safetensors"
    whole, draw, refused = file.read_bytes(), random.Random(0), 0
    end = 8 + int.from_bytes(whole[:8], "little")
    spots = [*draw.sample(range(end), 150), *draw.sample(range(end, len(whole)), 150)]
    for spot in spots:
        content = bytearray(whole)
        content[spot] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        again = read(folder)
        refused += again is None
        assert again is None or all(
            torch.equal(t, weights[n]) for n, t in again.state_dict().items()
        )
    assert refused > 280


def test_wrong_values_of_a_config_are_refused_or_read_as_written(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    needed = {"vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "dropout"}
    needed |= {"layer_norm_epsilon", "token_ids", "activation_function"}
    for value in VALUES:
        for name in config:
            wrong = config | {name: value}
            file.write_text(json.dumps(wrong))
            again = read(folder)
            if again is not None and name in needed:
                kept = again.config.to_dict()[name]
                assert kept == value or (kept == (5, 6, 50256) and value is None), (name, value)
        file.write_text(json.dumps(value))
        assert read(folder) is None


@pytest.mark.parametrize(
    "name", ["../../other.safetensors", "/tmp/x.safetensors", "model.bin", 3, None]
)
def test_shards_of_other_folders_are_refused(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    for content in ({"weight_map": {"a": name}}, {"weight_map": [name]}, [name], {}, name):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="names no safetensors files of its own folder"):
            GPT2.from_pretrained(folder)


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_pickles_in_a_folder_do_not_run(folder, name, allow_pickle, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises((ValueError, FileNotFoundError)):
        GPT2.from_pretrained(folder, allow_pickle=allow_pickle)
    torch.save({"wte.weight": Malicious(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, FileNotFoundError)):
        GPT2.from_pretrained(folder, allow_pickle=allow_pickle)
    assert not (tmp_path / "ran").exists()


def test_a_config_of_huge_sizes_takes_little_memory(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"):
        (folder / "config.json").write_text(json.dumps(config | {name: 10**8, "token_ids": None}))
        assert growth(lambda: read(folder) is None or os._exit(1)) < 64e6
        assert read(folder) is None
