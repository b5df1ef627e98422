"""Corpora: what goes in, how it is split, and what the cache holds after trouble."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

np = pytest.importorskip("numpy", reason="the trainer needs numpy")
torch = pytest.importorskip("torch", reason="the trainer needs torch")


def documents(prepare, corpus, split):
    tokenizer = prepare.Tokenizer.load(corpus.folder / "tokenizer.json")
    tokens = np.array(corpus.tokens[split])
    starts = [*np.flatnonzero(tokens == prepare.BOS_ID), len(tokens)]
    return {tokenizer.decode(tokens[a:b].tolist()) for a, b in itertools.pairwise(starts)}


def test_no_document_is_on_both_sides_of_the_split(fresh, prepare):
    corpus = fresh()
    train, val = (documents(prepare, corpus, split) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert len(train) + len(val) == corpus.manifest["documents"]


def test_the_default_corpus_holds_neither_tests_nor_installed_packages(prepare):
    names = [name for name, _ in prepare.list_files(None)]
    assert len(names) > 20
    assert not [name for name in names if "/test" in name or "site-packages" in name]


def test_a_new_file_moves_no_other_across_the_split(fresh, prepare, texts):
    before = documents(prepare, fresh("--corpus", texts), "val")
    for number in range(5):
        (texts / f"new{number}.txt").write_text(f"something new {number} " * 40)
    after = documents(prepare, fresh("--corpus", texts, "--force"), "val")
    assert {text for text in after if not text.startswith("something new")} == before


def test_the_hash_follows_content_and_name(prepare, texts):
    def digest():
        return prepare.content_hash(prepare.list_files(texts))

    first = digest()
    assert digest() == first
    path = texts / "00.txt"
    old = path.read_bytes()
    path.write_bytes(old + b".")
    changed = digest()
    path.write_bytes(old)
    assert digest() == first
    path.rename(texts / "renamed.txt")
    assert len({first, changed, digest()}) == 3


def test_the_hash_follows_the_vocabulary(prepare, texts, monkeypatch):
    first = prepare.content_hash(prepare.list_files(texts))
    monkeypatch.setattr(prepare, "VOCAB_SIZE", prepare.VOCAB_SIZE + 1)
    assert prepare.content_hash(prepare.list_files(texts)) != first


def test_preparing_twice_gives_the_same_bytes(fresh, texts):
    first = fresh("--corpus", texts).folder
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    shutil.rmtree(first)
    again = fresh("--corpus", texts).folder
    assert {path.name: path.read_bytes() for path in again.iterdir()} == kept


def test_repeated_and_undecodable_documents_are_left_out_and_counted(fresh, prepare, texts):
    (texts / "copy.txt").write_bytes((texts / "00.txt").read_bytes())
    (texts / "latin.txt").write_bytes("größer".encode("latin-1"))
    (texts / "empty.txt").touch()
    corpus = fresh("--corpus", texts)
    assert corpus.manifest["left_out"] == {"empty or repeated": 2, "not UTF-8": 1}
    assert corpus.manifest["documents"] == 60


def test_jsonl_gives_a_document_a_line(fresh, prepare, tmp_path):
    lines = [json.dumps({"text": f"Dokument {number} über Ä " * 20}) for number in range(50)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([*lines, "not json", '{"other": 1}', ""]), encoding="utf-8")
    corpus = fresh("--corpus", path)
    assert corpus.manifest["documents"] == 50
    both = documents(prepare, corpus, "train") | documents(prepare, corpus, "val")
    assert both == {f"Dokument {number} über Ä " * 20 for number in range(50)}


@pytest.fixture
def write_parquet():
    pa = pytest.importorskip("pyarrow", reason="parquet is read through pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(path, **columns):
        pq.write_table(pa.table({name: pa.array(*column) for name, column in columns.items()}), path, row_group_size=7)

    return write


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_parquet_gives_a_document_a_row(fresh, prepare, tmp_path, write_parquet, kind):
    texts = [f"Dokument {number} über Ä " * 20 for number in range(50)]
    path = tmp_path / "corpus.parquet"
    write_parquet(path, row=[range(52)], text=[[*texts, None, texts[0]], kind])
    corpus = fresh("--corpus", path)
    assert corpus.manifest["left_out"] == {"empty or repeated": 2}
    both = documents(prepare, corpus, "train") | documents(prepare, corpus, "val")
    assert both == set(texts)
    keys = [key for key, _ in prepare.read_documents([("corpus.parquet", path)], Counter())]
    assert keys == [f"corpus.parquet:{row}" for row in range(50)]


def test_parquet_in_a_folder_joins_the_other_files(fresh, texts, write_parquet):
    write_parquet(texts / "more.parquet", text=[[f"Reihe {row} " * 30 for row in range(10)]])
    manifest = fresh("--corpus", texts).manifest
    assert (manifest["files"], manifest["documents"]) == (61, 70)


def test_a_parquet_row_that_is_not_utf_8_is_left_out(fresh, texts, write_parquet):
    pa = pytest.importorskip("pyarrow")
    rows = pa.array([b"\xff\xfe", b"gut " * 9]).view(pa.string())
    write_parquet(texts / "more.parquet", text=[rows])
    manifest = fresh("--corpus", texts).manifest
    assert manifest["left_out"] == {"not UTF-8": 1}
    assert manifest["documents"] == 61


def test_parquet_without_a_column_of_text_is_refused_with_those_it_has(fresh, tmp_path, write_parquet, capsys):
    write_parquet(tmp_path / "a.parquet", text=[range(5)], content=[["a"] * 5])
    with pytest.raises(SystemExit) as stopped:
        fresh("--corpus", tmp_path)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/a.parquet: needs a column text of strings, and holds text (int64), content (string)" in said


@pytest.mark.parametrize("keep", [slice(0, 0), slice(0, -5), slice(40, None)], ids=["empty", "no end", "no start"])
def test_broken_parquet_is_refused_by_name(fresh, tmp_path, write_parquet, capsys, keep):
    path = tmp_path / "a.parquet"
    write_parquet(path, text=[[f"Reihe {row} " * 30 for row in range(30)]])
    path.write_bytes(path.read_bytes()[keep])
    with pytest.raises(SystemExit) as stopped:
        fresh("--corpus", path)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{path}: cannot be read as parquet" in said
    assert said.count("\n") == 1


def test_the_split_is_found_without_reading_all_of_a_big_corpus(prepare, texts):
    files = prepare.list_files(texts)
    assert prepare.val_limit([*files, ("zz.txt", texts / "absent.txt")]) == prepare.VAL_FRACTION


def test_the_document_of_lowest_rank_is_held_out_where_none_is_below_the_fraction(prepare, texts):
    files = [(name, path) for name, path in prepare.list_files(texts) if prepare.split_rank(name) > 0.2]
    assert prepare.val_limit(files) == min(prepare.split_rank(name) for name, _ in files)


def test_the_tokenizer_reads_no_more_than_its_sample(prepare, texts, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(prepare, "TOKENIZER_SAMPLE_BYTES", 3000)
    files = [*prepare.list_files(texts), ("zz.txt", texts / "absent.txt")]
    with pytest.raises(FileNotFoundError):
        prepare.write_corpus(files, str(texts), "0" * 64, tmp_path)
    assert "Corpus: encoding" in capsys.readouterr().out  # so the tokenizer was done before the end was missed


def test_one_text_file_is_cut_into_documents_without_losing_a_byte(fresh, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {number} of the book.\r\n" for number in range(9000)), newline="")
    manifest = fresh("--corpus", path).manifest
    assert manifest["documents"] > 5
    assert manifest["train_bytes"] + manifest["val_bytes"] == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "no such file or folder"),
        ("short.txt", "hello", "fewer than two documents"),
        ("short.jsonl", '{"text": "a"}\n{"text": "b"}\n', "do not fill a window"),
    ],
)
def test_an_unusable_corpus_is_refused_in_one_line(fresh, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        fresh("--corpus", tmp_path / name)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not [*(tmp_path / "cache").rglob("*.bin")]


def test_a_matching_manifest_is_reused_without_reading_the_source(fresh, texts):
    first = fresh("--corpus", texts)
    shutil.rmtree(texts)
    assert fresh().folder == first.folder


def test_a_corpus_that_changed_while_it_was_gone_from_the_cache_stops_the_run(fresh, prepare, texts, capsys):
    shutil.rmtree(fresh("--corpus", texts).folder)
    (texts / "00.txt").write_text("changed")
    prepare.open_corpus.cache_clear()
    with pytest.raises(SystemExit):
        prepare.open_corpus()
    assert "prepare.py --force" in capsys.readouterr().err
    assert fresh("--force").manifest["documents"] == 60


def test_a_truncated_token_file_is_prepared_again(fresh, texts):
    first = fresh("--corpus", texts)
    whole = (first.folder / "train.bin").read_bytes()
    (first.folder / "train.bin").write_bytes(whole[:100])
    again = fresh()
    assert (again.folder / "train.bin").read_bytes() == whole


def test_a_run_needs_no_write_access_beside_prepare(fresh, prepare, capsys):
    prepare.MANIFEST.mkdir()  # refuses to be replaced, even for root
    assert len(prepare.open_corpus().tokens["train"]) > 10_000
    assert "was not written" in capsys.readouterr().out
    assert not [*prepare.MANIFEST.parent.glob(".corpus.json*")]


def start_preparing(folder, cache, corpus):
    env = os.environ | {"LOOPGRAPH_PROFILE": "smoke", "LOOPGRAPH_CACHE": str(cache)}
    command = [sys.executable, "-u", "prepare.py", "--corpus", str(corpus)]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_two_processes_that_prepare_at_once_both_end_well(make_workspace, tmp_path, texts):
    running = [start_preparing(make_workspace(), tmp_path / "cache", texts) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    (folder,) = (tmp_path / "cache" / "corpora").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "corpus.json",
        "token_bytes.npy",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]


def test_a_preparation_overtaken_by_another_keeps_the_first(prepare, fresh, texts, monkeypatch):
    files = prepare.list_files(texts)
    digest = prepare.content_hash(files)
    write = prepare.write_corpus
    first = {}

    def write_while_another_finishes(*arguments):
        monkeypatch.setattr(prepare, "write_corpus", write)
        prepare.build(files, str(texts), digest)
        first["inode"] = (prepare.CORPORA / digest).stat().st_ino
        return write(*arguments)

    monkeypatch.setattr(prepare, "write_corpus", write_while_another_finishes)
    assert prepare.build(files, str(texts), digest)["documents"] == 60
    assert [path.stat().st_ino for path in prepare.CORPORA.iterdir()] == [first["inode"]]


def test_a_preparation_killed_half_way_leaves_nothing_that_is_used(make_workspace, tmp_path, texts, run_script):
    folder, cache = make_workspace(), tmp_path / "cache"
    process = start_preparing(folder, cache, texts)
    for line in process.stdout:
        if line.startswith(b"Tokenizer: learning"):
            process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    assert not (folder / "corpus.json").exists()
    assert [path for path in (cache / "corpora").iterdir() if not path.name.startswith(".part-")] == []
    again = run_script(folder, "prepare.py", "--corpus", texts, CACHE=cache)
    assert again.returncode == 0, again.stderr
    assert "documents: 60" in again.stdout


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(make_workspace, tmp_path, texts, run_script):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    folder = make_workspace()
    run = run_script(
        folder, "-B", "prepare.py", "--corpus", texts, CACHE=tmp_path / "cache", preexec_fn=small_files_only
    )
    assert run.returncode == 2, run.stderr
    assert "no space is left" in run.stderr
    assert run.stderr.count("\n") == 1
    assert [*(tmp_path / "cache" / "corpora").iterdir()] == []
