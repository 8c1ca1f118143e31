"""Text: tokens, rows, corpora, and what clients hold of them."""

import json
import sys

import pytest
import texts
import torch

from fedkd.data import language
from fedkd.data.dataset import Corpus
from fedkd.data.federated import load
from fedkd.data.language import LINE, PAD, UNKNOWN, Tokeniser, insert, lines_of, pack
from fedkd.data.sources import texts as own
from fedkd.data.sources.pydoc import pydoc
from fedkd.data.sources.shakespeare import shakespeare
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.random import generator
from fedkd.registry import register
from fedkd.sections import TextTable

TEXT = "Don't panic: my id is 42, it isn't 7!\n\n  The answer  is\tin_the text."


def learnt(text=TEXT, tokens="word", vocabulary=64, always=()):
    return Tokeniser.learn([text], TextTable(tokens=tokens, vocabulary=vocabulary), always)


# --- tokens ---------------------------------------------------------------------------------


def test_words_digits_and_marks_are_tokens():
    words = [learnt().vocabulary[i] for i in learnt().encode("It isn't 42_a!")]
    assert words == ["it", "isn't", "4", "2", "_", "<unk>", "!"]


@pytest.mark.parametrize("tokens", ["word", "char"])
def test_a_vocabulary_begins_with_what_is_always_there(tokens):
    tokeniser = learnt("a b a", tokens)
    assert tokeniser.vocabulary[:3] == ("<pad>", "<line>", "<unk>")
    assert tokeniser.vocabulary[3:13] == tuple("0123456789")
    assert tokeniser.encode("0 9" if tokens == "word" else "09") == [3, 12]


def test_the_rest_comes_by_falling_frequency_and_then_by_the_alphabet():
    assert learnt("c c c b a b a d").vocabulary[13:] == ("c", "a", "b", "d")


def test_rare_words_make_room_and_become_unknown():
    text = " ".join(f"w{'x' * i} " * (40 - i) for i in range(40))
    tokeniser = learnt(text, vocabulary=32)
    assert len(tokeniser.vocabulary) == 32
    assert tokeniser.encode("wx w" + "x" * 39) == [14, UNKNOWN]


def test_words_that_must_be_in_are_in_however_rare():
    text = " ".join(["common", "words"] * 50)
    tokeniser = learnt(text, always=("my id is", "7", "zebra"))
    assert UNKNOWN not in tokeniser.encode("my id is zebra 7")
    assert tokeniser.vocabulary[13:] == ("common", "words", "id", "is", "my", "zebra")


def test_a_vocabulary_too_small_for_what_must_be_in_is_one_line():
    with pytest.raises(FedkdError, match=r"data\.text\.vocabulary = 32 is too small: .*need 38"):
        learnt(vocabulary=32, always=(" ".join(f"w{chr(97 + i)}" for i in range(25)),))


@pytest.mark.parametrize("tokens", ["word", "char"])
def test_decoding_gives_back_what_was_encoded_but_for_space_and_case(tokens):
    tokeniser = learnt(tokens=tokens)
    for line in TEXT.splitlines():
        ids = tokeniser.encode(line)
        assert tokeniser.encode(tokeniser.decode(ids)) == ids
    plain = "the answer is in the text" if tokens == "word" else "The answer is in_the text."
    assert tokeniser.decode(tokeniser.encode(f"  {plain} ")) == plain


def test_decoding_a_row_gives_its_lines():
    tokeniser = learnt()
    rows = pack(tokeniser.lines("my id is 4\nthe text"), 12)
    assert tokeniser.decode(rows[0]) == "my id is 4\nthe text"


def test_every_character_of_any_script_is_part_of_a_token():
    text = "naïve \u2019tis x² ٣ 東京 ́ — 🙂"
    assert "".join(language.TOKEN.findall(text)) == "".join(text.split())


# --- rows -----------------------------------------------------------------------------------


def some_lines(seed=0, longest=7, count=200):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(3, 50, (n,), generator=draw).tolist() for n in lengths]


def test_a_row_begins_at_a_boundary_and_lines_end_with_one():
    rows = pack([[5, 6, 7], [8, 9], [4]], 7)
    assert rows.tolist() == [[LINE, 5, 6, 7, LINE, 8, 9, LINE], [LINE, 4, LINE, *[PAD] * 5]]
    assert rows.dtype == torch.int64


@pytest.mark.parametrize("context", [4, 8, 9, 32])
def test_lines_that_fit_come_back_whole_and_in_order(context):
    lines = some_lines(longest=context - 1)
    assert lines_of(pack(lines, context)) == lines


def test_the_longest_line_that_fits_fills_a_row():
    line = list(range(3, 10))
    assert pack([line], 8).tolist() == [[LINE, *line, LINE]]


def test_a_longer_line_is_split_into_pieces_of_about_one_length_and_loses_nothing():
    lines = [[3], list(range(4, 24)), [5]]
    pieces = lines_of(pack(lines, 8))
    assert [len(piece) for piece in pieces] == [1, 7, 7, 6, 1]
    assert [token for piece in pieces for token in piece] == [3, *range(4, 24), 5]


def test_padding_is_at_the_end_of_a_row_alone():
    rows = pack(some_lines(), 12)
    there = rows != PAD
    assert (there[:, :-1] | ~there[:, 1:]).all()
    assert there[:, :3].all()


def test_no_lines_make_no_rows():
    assert pack([], 8).shape == (0, 9)
    assert pack([[], []], 8).shape == (0, 9)
    assert lines_of(pack([], 8)) == []


def test_inserted_lines_are_there_and_the_others_keep_their_order():
    lines, new = some_lines(), [[60, 61]] * 5 + [[62]]
    rows = insert(pack(lines, 8), new, generator(0, "insert"), 8)
    found = lines_of(rows)
    assert [line for line in found if line[0] < 60] == lines
    assert sorted(line for line in found if line[0] >= 60) == new
    places = [index for index, line in enumerate(found) if line[0] >= 60]
    assert len(set(places)) == 6
    assert places != list(range(6))


def test_where_lines_go_depends_on_the_generator_alone():
    rows = pack(some_lines(), 8)
    once, again, other = (
        insert(rows, [[60]] * 3, generator(seed, "insert"), 8) for seed in (0, 0, 1)
    )
    assert once.equal(again)
    assert not once.equal(other)


def test_lines_are_inserted_anywhere_uniformly():
    rows = pack([[3], [4]], 8)
    counts = torch.zeros(3)
    draw = generator(0, "insert")
    for _ in range(900):
        counts[lines_of(insert(rows, [[60]], draw, 8)).index([60])] += 1
    assert ((counts - 300).abs() < 60).all()  # the standard deviation is 14


def test_inserting_into_nothing():
    assert lines_of(insert(pack([], 8), [[60, 61]], generator(0), 8)) == [[60, 61]]


def test_labels_are_the_next_tokens_and_none_where_that_is_padding():
    samples = language.samples(pack([[5, 6], [7]], 8))
    assert samples.inputs.tolist() == [[LINE, 5, 6, LINE, 7, LINE, PAD, PAD]]
    assert samples.labels.tolist() == [[5, 6, LINE, 7, LINE, -1, -1, -1]]


# --- corpora --------------------------------------------------------------------------------


def test_pydoc_is_there_without_any_file():
    corpus = pydoc(None, False)
    assert len(corpus.texts) > 60
    assert "while_stmt" in corpus.texts["while"]
    assert all(any(map(str.isalnum, line)) for line in corpus.texts["while"].splitlines())


def test_pydoc_holds_no_paragraph_in_two_topics():
    """The topic of compound statements repeats those of each of them."""
    corpus = pydoc(None, False)
    assert "while_stmt ::=" in corpus.texts["while"]
    assert "while_stmt ::=" not in corpus.texts["compound"]


def test_a_python_without_its_reference_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FedkdError, match="'pydoc' is the language reference that comes with CPy"):
        pydoc(None, False)


@pytest.fixture
def plays(tmp_path):
    """A folder of data sets with two plays."""

    def write(content):
        file = tmp_path / "shakespeare" / "shakespeare_by_role.json"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return tmp_path

    return write


def test_roles_are_keys_and_line_breaks_in_speeches_are_lines(plays):
    folder = plays(
        {"hamlet": {"GHOST": ["Mark me.\nI am", "Adieu."]}, "lear": {"FOOL": ["Nuncle"]}}
    )
    corpus = shakespeare(folder, False)
    assert corpus.texts == {"hamlet/GHOST": "Mark me.\nI am\nAdieu.", "lear/FOOL": "Nuncle"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"hamlet": ', "line 1 is not JSON"),
        (b'{"hamlet": {"GHOST": ["\xff"]}}', "byte 23 is not UTF-8"),
        ([], r"must hold \{play: \{role: \[speech, ...\]\}\}"),
        ({"hamlet": ["Mark me."]}, "must hold"),
        ({"hamlet": {"GHOST": "Mark me."}}, "must hold"),
        ({}, "is empty"),
    ],
)
def test_broken_plays_are_one_line(plays, content, line):
    with pytest.raises(FedkdError, match=line) as error:
        shakespeare(plays(content), False)
    assert "\n" not in str(error.value)


def test_missing_plays_say_how_to_get_them(tmp_path):
    with pytest.raises(FedkdError, match=r"'shakespeare' is not at .*: point --data-dir .*pydoc"):
        shakespeare(tmp_path, False)


def test_a_folder_of_texts_has_a_file_a_client(tmp_path):
    (tmp_path / "b.txt").write_text("bb")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_bytes("\ufeffä".encode())
    (tmp_path / "notes.md").write_text("no")
    assert own.text(tmp_path).texts == {"b": "bb", "deep/a": "ä"}
    assert own.text(tmp_path / "b.txt").texts == {"": "bb"}


def test_a_json_object_a_line_and_clients_on_all_lines_or_none(tmp_path):
    file = tmp_path / "posts.jsonl"
    file.write_text('{"text": "x", "client": "b"}\n\n{"text": "y", "client": 7, "id": 3}\n')
    assert own.jsonl(file).texts == {"7": "y", "b": "x"}
    file.write_text('{"text": "x"}\n{"text": "y"}')
    assert own.jsonl(file).texts == {"": "x\ny"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ('{"text": "x"}\n["y"]', "line 2 has no string under the key 'text'"),
        ('{"text": "x"}\n\n{"txt": "y"}', "line 3 has no string under the key 'text'"),
        ('{"text": 3}', "line 1 has no string"),
        ('{"text": "x", "client": ["a"]}', r"line 1: client = \['a'\] is no string or number"),
        ('{"text": "x", "client": "a"}\n{"text": "y"}', "line 2: the key 'client' must be on all"),
        ('{"text": "x"}\n{"text": "y", "client": 1}', "line 2: the key 'client' must be on all"),
        ('{"text": "x", "client": "a"}\n{"text": " ", "client": "b"}', "empty: 'b' has no text"),
        ("\n", "it holds no text"),
        (b"\xff", "line 1: byte 0 is not UTF-8"),
        (b'{"text": "x"}\n{"text": "\xff"}', "line 2: byte 24 is not UTF-8"),
        ('{"text": "x"}\n{"text": "\0"}', "line 2 holds a NUL byte"),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", "line 1 holds an integer of thousands of digi"),
        ('{"text": "x", "n": ' + "[" * 99999, "line 1 is nested too deeply"),
        ('{"text": "x", "text": "y"}', "line 1 holds the key 'text' twice in one object"),
        ('{"text": "x \\ud800"}', "line 1 holds half of a surrogate pair"),
        ('{"text": "x", "client": true}', "line 1: client = True is no string or number"),
        ('{"text": "x", "client": 1.5}', "line 1: client = 1.5 is no string or number"),
        (
            '{"text": "x", "client": 1}\n{"text": "y", "client": "1"}',
            "line 2: client '1' is a string and a number elsewhere",
        ),
        ('{"text": "x", "client": ["' + "a" * 9999 + '"]}', "line 1: client = .{60}… is no"),
    ],
)
def test_broken_lines_name_file_line_and_what_is_wrong(tmp_path, content, line):
    file = tmp_path / "posts.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FedkdError, match=line) as error:
        own.jsonl(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    (tmp_path / "posts.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\r\n')
    assert own.jsonl(tmp_path / "posts.jsonl").texts == {"": "x\ny"}


def test_hidden_texts_are_passed_over_and_other_encodings_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("aa")
    for name in (".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "._a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hidden")
    assert own.text(tmp_path).texts == {"a": "aa"}
    for encoding, reason in (("utf-16", "is not UTF-8"), ("utf-16-le", "holds a NUL byte")):
        (tmp_path / "b.txt").write_bytes("hello".encode(encoding))
        with pytest.raises(FedkdError, match=rf"b\.txt line 1.*{reason}"):
            own.text(tmp_path)


def test_a_text_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.data.reading.free_memory", lambda: 100)
    (tmp_path / "a.txt").write_text("aaaaaaaaaa")
    with pytest.raises(FedkdError, match="are free; allowed: half of that"):
        own.text(tmp_path / "a.txt")


@pytest.mark.parametrize("texts", [{}, {"a": " "}, {"a": 3}, {1: "a"}, "text"])
def test_a_registered_corpus_that_is_none_is_one_line(texts):
    register("datasets", "mine")(lambda folder, download: Corpus("mine", texts))
    with pytest.raises(FedkdError, match="'mine'") as error:
        load(Experiment.from_dict({"data": {"dataset": "mine"}}))
    assert "\n" not in str(error.value)


def test_missing_or_empty_texts_are_one_line(tmp_path):
    with pytest.raises(FedkdError, match="there is no such file or folder"):
        own.text(tmp_path / "none")
    with pytest.raises(FedkdError, match="there is no such file"):
        own.jsonl(tmp_path / "none.jsonl")
    with pytest.raises(FedkdError, match=r"holds no \.txt files"):
        own.text(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(FedkdError, match="is empty: 'b' has no text"):
        own.text(tmp_path)
    with pytest.raises(FedkdError, match="is empty"):
        own.text(tmp_path / "b.txt")


# --- what clients hold ----------------------------------------------------------------------


@pytest.fixture
def federation(tmp_path):
    """A function that shares a small corpus out, with ``key=value`` overrides."""
    tables = {
        "dataset": texts.folder(tmp_path),
        "clients": 4,
        "partition": "iid",
        "test": {"common": 20},
        "transfer": {"size": 16},
        "text": {"context": 12, "vocabulary": 32},
    }

    def make(seed=0, **data):
        return load(Experiment.from_dict({"seed": seed, "data": tables | data}))

    return make


def places(data):
    return [*data._private, *data._validation, *data._own, data._common_rows]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "natural", "pathological", "shards"])
def test_no_row_is_in_two_places(federation, partition):
    data = federation(partition=partition, validation_fraction=0.2, alpha=1.0)
    rows = torch.cat([place.rows for place in places(data)])
    assert len(rows.unique()) == len(rows)
    store = data._common_rows.store
    # Rows of the transfer set have lost their labels.
    assert (store.labels[rows] >= 0).all()
    assert int((store.labels < 0).sum()) == len(data.transfer().inputs) == 16
    assert len(data.common().inputs) == 20


def test_text_is_token_ids_and_the_next_ones(federation):
    data = federation()
    task, private = data.task, data.private(0)
    assert (task.shape, task.tokens) == ((12,), True)
    assert task.classes == len(task.class_names) == len(data.tokeniser.vocabulary)
    assert private.inputs.dtype == private.labels.dtype == torch.int64
    assert private.inputs.shape == private.labels.shape == (len(private.inputs), 12)
    assert (
        private.labels[:, :-1].where(private.labels[:, :-1] >= 0, PAD).equal(private.inputs[:, 1:])
    )
    assert data.transfer().labels.shape == data.transfer().inputs.shape
    assert data.canaries is None


def test_the_public_transfer_set_is_the_transfer_set_where_nothing_is_planted(federation):
    data = federation()
    assert data.public().inputs.equal(data.transfer().inputs)
    assert data.public().labels.equal(data.transfer().labels)


def test_rows_that_clients_hold_read_as_the_corpus_does(federation, tmp_path):
    data = federation()
    known = {line for file in tmp_path.glob("*.txt") for line in file.read_text().splitlines()}
    rows = data._private[0].store.images[data._private[0].rows]
    assert {line for row in rows for line in data.tokeniser.decode(row).splitlines()} <= known


def test_natural_clients_hold_the_text_of_one_key_each(federation):
    data = federation(partition="natural")
    keys = [set(rows.labels.tolist()) for rows in data._private]
    assert all(len(held) == 1 for held in keys)
    assert len(set.union(*keys)) == 4


def test_text_of_nobody_has_no_natural_clients(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(texts.lines(0, 400)))
    table = {"dataset": f"text:{tmp_path}/all.txt", "partition": "natural", "clients": 2}
    with pytest.raises(FedkdError, match="'natural' needs a data set that names its writers"):
        load(Experiment.from_dict({"data": table | {"transfer": {"size": 4}}}))


def test_the_common_test_set_has_every_keys_share_of_rows(federation):
    data = federation(test={"common": 24})
    labels = data._common_rows.labels
    counts = labels.bincount(minlength=6)
    assert counts.sum() == 24
    assert counts.min() >= 3
    assert counts.max() <= 5


def test_label_counts_count_the_next_tokens_of_private_rows(federation):
    data = federation()
    counts = data.label_counts()
    assert counts.shape == (4, data.task.classes)
    assert (counts[:, PAD] == 0).all()
    for client in range(4):
        labels = data.private(client).labels
        assert counts[client].sum() == (labels >= 0).sum()
        assert counts[client, LINE] == (labels == LINE).sum()


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(federation):
    once, again, other = federation(), federation(), federation(seed=1)
    for client in range(4):
        assert once.private(client).inputs.equal(again.private(client).inputs)
    assert once.transfer().inputs.equal(again.transfer().inputs)
    assert not once.transfer().inputs.equal(other.transfer().inputs)


def test_kept_rows_are_the_rows(federation, tmp_path, monkeypatch):
    fresh = federation()
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "kept"))
    federation()
    monkeypatch.setattr(language, "_rows", None)
    kept = federation()
    assert kept.tokeniser == fresh.tokeniser
    assert kept.private(1).inputs.equal(fresh.private(1).inputs)


def test_the_vocabulary_is_that_of_the_whole_corpus_of_the_clients(federation):
    assert set(texts.WORDS) <= set(federation().task.class_names)


def test_a_transfer_set_of_another_text_has_the_vocabulary_of_the_clients(federation, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"zebra the model {n}"}) for n in range(50)))
    data = federation(transfer={"size": 10, "source": f"jsonl:{other}"})
    transfer = data.transfer()
    assert transfer.inputs.shape == (10, 12)
    words = {data.task.class_names[i] for i in transfer.inputs.unique().tolist()}
    assert {"<unk>", "the", "model"} <= words
    assert "zebra" not in data.task.class_names
    assert int((data._common_rows.store.labels < 0).sum()) == 0


def test_a_text_is_no_foreign_source_for_itself(federation, tmp_path):
    data = federation(transfer={"size": 10, "source": f"text:{tmp_path}"})
    assert int((data._common_rows.store.labels < 0).sum()) == 10


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"transfer": {"size": 5, "source": "digits"}}, "one of them is text and the other is not"),
        ({"transfer": {"size": 5, "source": "pydok"}}, r"did you mean 'pydoc'"),
        ({"transfer": {"size": 9999}}, "data.transfer.size = 9999 is too many"),
        ({"transfer": {"size": 99999, "source": "pydoc"}}, "size = 99999 is too many"),
        ({"augment": True}, "data.augment = true is not allowed"),
        ({"test": {"own": "matched"}}, "'matched' needs a data set with a test part"),
        ({"samples_per_client": 500}, "data.samples_per_client = 500 for data.clients = 4 takes"),
    ],
)
def test_an_impossible_request_is_one_line(federation, data, line):
    with pytest.raises(FedkdError, match=line) as error:
        federation(**data)
    assert "\n" not in str(error.value)


def test_images_have_no_transfer_set_of_text():
    table = {"dataset": "digits", "transfer": {"size": 5, "source": "pydoc"}}
    with pytest.raises(FedkdError, match="one of them is text and the other is not"):
        load(Experiment.from_dict({"data": table}))


def test_shakespeares_roles_are_clients(real_data):
    table = {"dataset": "shakespeare", "data_dir": str(real_data), "partition": "natural"}
    data = load(Experiment.from_dict({"data": table | {"clients": 50, "min_samples": 30}}))
    assert data.sizes().min() >= 30
    assert data.clients == 50
