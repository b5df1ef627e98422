"""Bits per byte, counted again token by token in plain Python."""

import array
import json
import math

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


class Odd(torch.nn.Module):
    """A model whose loss is an odd but exact function of each token and its successor."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, y, reduction):
        assert reduction == "none"
        return (((x * 31 + y * 17) % 101).float() / 16 * self.weight).view(-1)


def byte_of_character():
    """The byte that each character of a byte-level vocabulary writes, as GPT-2 numbered them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def strings_of_tokens(folder):
    """What each id stands for, as bytes."""
    table = byte_of_character()
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return {index: bytes(table[c] for c in token) for token, index in vocabulary.items()}


def tokens_of(folder, split):
    tokens = array.array("H")
    tokens.frombytes((folder / f"{split}.bin").read_bytes())
    return tokens


def brute_force_bpb(prepare, corpus):
    tokens, strings = tokens_of(corpus.folder, "val"), strings_of_tokens(corpus.folder)
    length = prepare.MAX_SEQ_LEN
    available = (len(tokens) - 1) // length
    wanted = min(prepare.EVAL_TOKENS // length, available)
    nats, spelled = 0.0, b""
    for number in range(wanted):
        first = number * available // wanted * length
        for at in range(first, first + length):
            if tokens[at + 1] != prepare.BOS_ID:
                nats += (tokens[at] * 31 + tokens[at + 1] * 17) % 101 / 16
                spelled += strings[tokens[at + 1]]
    return nats / len(spelled) / math.log(2), spelled


def test_bits_per_byte_agree_with_a_count_token_by_token(fresh, prepare, texts):
    corpus = fresh("--corpus", texts)
    expected, spelled = brute_force_bpb(prepare, corpus)
    assert "漢字".encode() in spelled
    assert len(spelled) > len(spelled.decode("utf-8", errors="ignore"))
    assert prepare.evaluate_bpb(Odd(), 4) == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte_agree_where_windows_are_a_sample_of_the_text(fresh, prepare, texts, monkeypatch):
    corpus = fresh("--corpus", texts)
    monkeypatch.setattr(prepare, "EVAL_TOKENS", 5 * prepare.MAX_SEQ_LEN)
    assert prepare.evaluate_bpb(Odd(), 2) == pytest.approx(brute_force_bpb(prepare, corpus)[0], rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, 1000])
def test_bits_per_byte_do_not_depend_on_the_batch_size(prepare, batch_size):
    assert prepare.evaluate_bpb(Odd(), batch_size) == pytest.approx(prepare.evaluate_bpb(Odd(), 2), rel=1e-12)


def test_every_batch_has_the_same_shape_so_that_a_compiled_model_compiles_once(prepare):
    shapes = set()

    class Watched(Odd):
        def forward(self, x, y, reduction):
            shapes.add(tuple(x.shape))
            return super().forward(x, y, reduction)

    prepare.evaluate_bpb(Watched(), 7)
    assert shapes == {(7, prepare.MAX_SEQ_LEN)}


def test_a_model_that_averages_its_losses_is_refused(prepare):
    class Averaging(Odd):
        def forward(self, x, y, reduction):
            return super().forward(x, y, reduction).mean()

    with pytest.raises(ValueError, match="gave 1 losses for"):
        prepare.evaluate_bpb(Averaging(), 4)


def test_tokens_spell_every_document_byte_for_byte(fresh, prepare, texts):
    corpus = fresh("--corpus", texts)
    strings = strings_of_tokens(corpus.folder)
    found = set()
    for split in ("train", "val"):
        documents = []
        for index in tokens_of(corpus.folder, split):
            if index == prepare.BOS_ID:
                documents.append(b"")
            else:
                documents[-1] += strings[index]
        found |= set(documents)
    assert found == {path.read_bytes() for path in texts.rglob("*.txt")}
    assert corpus.manifest["train_bytes"] + corpus.manifest["val_bytes"] == sum(map(len, found))


def test_token_bytes_count_partial_characters_and_give_none_to_bos(fresh, prepare, texts):
    corpus = fresh("--corpus", texts)
    strings = strings_of_tokens(corpus.folder)
    assert any(b"\x80" <= string[:1] < b"\xc0" for string in strings.values())
    expected = [len(strings.get(index, b"")) for index in range(prepare.VOCAB_SIZE)]
    assert corpus.token_bytes.tolist() == expected
    assert corpus.token_bytes[prepare.BOS_ID] == 0


def test_text_survives_the_tokenizer(fresh, prepare, texts):
    tokenizer = prepare.Tokenizer.load(fresh("--corpus", texts).folder / "tokenizer.json")
    text = "def größe():\n\treturn '漢🙂' # <|bos|>\r\n"
    assert tokenizer.decode([prepare.BOS_ID, *tokenizer.encode(text)]) == text
