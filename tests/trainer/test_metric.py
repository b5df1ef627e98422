"""Bits per byte, counted again token by token in plain Python."""

import array
import json
import math

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


class Odd(torch.nn.Module):
    """A model whose logits are an odd but exact function of each token; its own loss is none of the metric's."""

    def __init__(self, prepare):
        super().__init__()
        self.size = prepare.VOCAB_SIZE
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, y=None):
        assert y is None
        return odd_logits(x[..., None], torch.arange(self.size)) * self.weight


def odd_logits(token, following):
    return ((token * 31 + following * 17) % 101) / 16


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
    partition = [
        math.log(math.fsum(math.exp(odd_logits(token, following)) for following in range(prepare.VOCAB_SIZE)))
        for token in range(prepare.VOCAB_SIZE)
    ]
    nats, spelled = [], b""
    for number in range(wanted):
        first = number * available // wanted * length
        for at in range(first, first + length):
            if tokens[at + 1] != prepare.BOS_ID:
                nats.append(partition[tokens[at]] - odd_logits(tokens[at], tokens[at + 1]))
                spelled += strings[tokens[at + 1]]
    return math.fsum(nats) / len(spelled) / math.log(2), spelled


def test_bits_per_byte_agree_with_a_count_token_by_token(fresh, prepare, texts):
    corpus = fresh("--corpus", texts)
    expected, spelled = brute_force_bpb(prepare, corpus)
    assert "漢字".encode() in spelled
    assert len(spelled) > len(spelled.decode("utf-8", errors="ignore"))
    assert prepare.evaluate_bpb(Odd(prepare), 4) == pytest.approx(expected, rel=1e-6)


def test_bits_per_byte_agree_where_windows_are_a_sample_of_the_text(fresh, prepare, texts, monkeypatch):
    corpus = fresh("--corpus", texts)
    monkeypatch.setattr(prepare, "EVAL_TOKENS", 5 * prepare.MAX_SEQ_LEN)
    assert prepare.evaluate_bpb(Odd(prepare), 2) == pytest.approx(brute_force_bpb(prepare, corpus)[0], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, 1000])
def test_bits_per_byte_do_not_depend_on_the_batch_size(prepare, batch_size):
    expected = prepare.evaluate_bpb(Odd(prepare), 2)
    assert prepare.evaluate_bpb(Odd(prepare), batch_size) == pytest.approx(expected, rel=1e-9)


def test_every_batch_has_the_same_shape_so_that_a_compiled_model_compiles_once(prepare):
    shapes = set()

    class Watched(Odd):
        def forward(self, x, y=None):
            shapes.add(tuple(x.shape))
            return super().forward(x, y)

    prepare.evaluate_bpb(Watched(prepare), 7)
    assert shapes == {(7, prepare.MAX_SEQ_LEN)}


def test_logits_of_another_shape_are_refused(prepare):
    class Flat(Odd):
        def forward(self, x, y=None):
            return super().forward(x, y).flatten(0, 1)

    class Narrow(Odd):
        def forward(self, x, y=None):
            return super().forward(x, y)[..., :-1]

    for model in (Flat(prepare), Narrow(prepare)):
        with pytest.raises(ValueError, match=r"model\(x\) gave \(.*\), not logits of \(4, 64, 512\)"):
            prepare.evaluate_bpb(model, 4)


def test_a_vocabulary_filled_up_for_speed_costs_only_its_own_probability(prepare):
    class Padded(Odd):
        def forward(self, x, y=None):
            return torch.nn.functional.pad(super().forward(x, y), (0, 64), value=-torch.inf)

    assert prepare.evaluate_bpb(Padded(prepare), 4) == pytest.approx(prepare.evaluate_bpb(Odd(prepare), 4))


@pytest.mark.parametrize("shift", [1, 2, 31])
def test_a_model_that_looks_ahead_is_refused(prepare, shift):
    class Peeking(Odd):
        def forward(self, x, y=None):
            ahead = x.roll(-shift, 1)
            return super().forward(x, y) + 0.5 * odd_logits(ahead[..., None], torch.arange(self.size))

    with pytest.raises(ValueError, match="sees tokens that it should predict"):
        prepare.evaluate_bpb(Peeking(prepare), 4)


def test_a_model_that_looks_back_or_trembles_a_little_is_not_refused(prepare):
    class Remembering(Odd):
        def forward(self, x, y=None):
            before = torch.nn.functional.pad(x, (5, 0))[:, :-5]
            logits = super().forward(x, y) + odd_logits(before[..., None], torch.arange(self.size))
            return logits + 0.01 * torch.randn_like(logits)

    assert 0 < prepare.evaluate_bpb(Remembering(prepare), 4) < 10


def test_logits_that_are_no_numbers_give_no_number(prepare):
    class Broken(Odd):
        def forward(self, x, y=None):
            return super().forward(x, y) * torch.nan

    assert math.isnan(prepare.evaluate_bpb(Broken(prepare), 4))


def test_what_the_models_own_loss_adds_does_not_count(train, prepare, monkeypatch):
    model = train.build()
    before = prepare.evaluate_bpb(model, 8)
    forward = type(model).forward

    def smoothed(self, idx, targets=None, reduction="mean"):
        made = forward(self, idx, targets, reduction)
        return made if targets is None else 0.1 * made  # as a loss that flatters itself

    monkeypatch.setattr(type(model), "forward", smoothed)
    assert prepare.evaluate_bpb(model, 8) == before


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
