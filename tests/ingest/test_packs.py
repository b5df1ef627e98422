import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code.apply import apply_method, detect
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest.packs import FAMILIES, read_pack
from loopgraph_mcp.models import Applied, Presence, Refused
from loopgraph_mcp.store import methods
from tests.conftest import ROOT

SHIPPED = ROOT / "methodpacks"
GUIDE = ROOT / "docs" / "method-packs.md"
MANIFEST = 'name = "a-pack"\nversion = "1"\nlicense = "MIT"\n'
METHOD = """
id = "rate"
name = "Rate"
family = "learning-rate"
aliases = ["LR"]
summary = "Change the rate."
description = "It sets how far a step goes."

[[sources]]
kind = "url"
ref = "https://example.org"
title = "On rates"

[[published]]
claim = "better"
setting = "a laptop"
source = "somebody"
gain = 0.001

[knobs.rate]
default = 0.5
low = 0.0
high = 1.0
description = "The rate."

[recipe]
[[recipe.ops]]
op = "set_const"
name = "LR"
value = "{rate}"
"""
OPS = {
    "replace_stmt": 'op = "replace_stmt"\nscope = "f"\nold = "x = 1"\nnew = "x = {rate}"',
    "insert_after": 'op = "insert_after"\nscope = "f"\nanchor = "x = 1"\ncode = "x = {rate}"',
    "add_method": 'op = "add_method"\nscope = "C"\ncode = "def f(self): return {rate}"',
}
SET_CONST = 'op = "set_const"\nname = "LR"\nvalue = "{rate}"'


def write_pack(folder: Path, manifest: str = MANIFEST, **methods: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.toml").write_text(manifest, encoding="utf-8")
    for name, text in methods.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def error_of(folder: Path) -> str:
    with pytest.raises(PackError) as caught:
        read_pack(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    return message.removeprefix(str(folder)).removeprefix("/")


# -------------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_file_is_valid_by_itself(file: Path, tmp_path: Path) -> None:
    write_pack(tmp_path)
    text = re.sub(r"conflicts = \[.*\]", "conflicts = []", file.read_text(encoding="utf-8"))
    (tmp_path / file.name).write_text(text, encoding="utf-8")
    pack = read_pack(tmp_path)
    assert [method.id for method in pack.methods] == ([file.stem] if file.name != "pack.toml" else [])


def test_the_shipped_pack_is_valid_as_a_whole() -> None:
    pack = read_pack(SHIPPED)
    assert pack.name == "loopgraph-base"
    assert len(pack.methods) >= 45
    assert sum(method.recipe is not None for method in pack.methods) >= 35
    for method in pack.methods:
        assert method.moves
        assert all(result.source and result.setting for result in method.published)
        assert all(re.fullmatch(r"\d{4}\.\d{4,5}", each.ref) for each in method.sources if each.kind == "arxiv")
        for conflict in method.recipe.conflicts if method.recipe else ():
            other = next(each for each in pack.methods if each.id == conflict)
            assert other.recipe is not None
            assert method.id in other.recipe.conflicts


def as_written_before(value: object) -> object:
    """Return a card as stores before 0.1.0 wrote it: ops by their class, and with keys that nothing reads any more."""
    if isinstance(value, list):
        return [as_written_before(each) for each in value]
    if not isinstance(value, dict):
        return value
    card = {key: as_written_before(each) for key, each in value.items()}
    if "op" in card:
        card["op"] = "".join(word.title() for word in str(card["op"]).split("_"))
    return card if "conflicts" not in card else {**card, "requires": ["gqa"], "rules": [], "computed": {}}


def test_every_card_that_a_store_holds_is_still_read() -> None:
    for method in read_pack(SHIPPED).methods:
        card = methods._encode(method)
        before = json.dumps(as_written_before(json.loads(card)))
        assert method.recipe is None or before != card
        assert methods._decode(before) == methods._decode(card) == method


def test_a_pack_is_read_as_it_was_written(tmp_path: Path) -> None:
    pack = read_pack(write_pack(tmp_path, rate=METHOD))
    (method,) = pack.methods
    assert (pack.name, pack.version) == ("a-pack", "1")
    assert (method.id, method.family, method.aliases) == ("rate", "learning-rate", ("LR",))
    assert method.published[0].gain == 0.001
    assert (method.knobs[0].default, method.knobs[0].low, method.knobs[0].high) == (0.5, 0.0, 1.0)
    assert isinstance(apply_method(method, "LR = 0.1\n", {}), Applied)


# --------------------------------------------------------------------------------------------- broken


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "rate"', "id = rate", "not TOML"),
        ("default = 0.5", "default = " + "9" * 5_000, "not TOML"),
        ("default = 0.5", "default = 0x" + "f" * 5_000, "knobs.rate.default"),
        ("default = 0.5", "default = nan", "knobs.rate.default"),
        ("default = 0.5", "default = true", "knobs.rate.default"),
        ("default = 0.5", "default = 1979-05-27", "knobs.rate.default"),
        ("default = 0.5", "default = 2.0", "knobs.rate: 2.0 is out of its range"),
        ("default = 0.5", "default = 0.5\nchoices = [0.1, 0.2]", "knobs.rate: the default 0.5 is none of its choices"),
        ("default = 0.5", 'default = 0.5\nchoices = [0.5, "a"]', "knobs.rate: the default and the choices"),
        ("default = 0.5", "default = 0.5\nchoices = [0.5, 7.0]", "knobs.rate: 7.0 is out of its range"),
        ("default = 0.5", "default = 1\nchoices = [1, 0.5]", "knobs.rate: the default and the choices"),
        ("default = 0.5", 'default = "a"', "knobs.rate: low and high are for numbers"),
        ("high = 1.0", "high = inf", "knobs.rate.high"),
        ("gain = 0.001", "gain = inf", "published[1].gain"),
        ("gain = 0.001", 'gain = "much"', "published[1].gain"),
        ('source = "somebody"\n', "", "published[1].source: Field required"),
        ('kind = "url"', 'kind = "book"', "sources[1].kind"),
        ('name = "Rate"', 'name = "Rate"\nnote = "x"', "note: Extra inputs are not permitted"),
        ("[recipe]", "[recipe]\nwhen = 1", "recipe.when: Unexpected keyword argument"),
        ('name = "LR"', 'name = "LR"\nscope = "f"', "recipe.ops[1].scope: Unexpected keyword argument"),
        ('name = "LR"', 'name = "L R"', "recipe.ops[1].name"),
        ('op = "set_const"', 'op = "run"', "recipe.ops[1]"),
        (f"[[recipe.ops]]\n{SET_CONST}", "ops = []", "recipe.ops"),
        ("[recipe]", "[recipe.computed.x]\nvalue = '1'\n[recipe]", "recipe.computed: Unexpected keyword argument"),
        ("[recipe]", "[[recipe.needs]]\nwhy = 'x'\n[recipe]", "recipe.needs[1]: a mark has a scope"),
        ("[recipe]", "[[recipe.needs]]\nhas = ['x (']\n[recipe]", "recipe.needs[1]: the code does not parse"),
        ("[recipe]", "[[recipe.variants]]\npart = 'x'\n[recipe]", "recipe.variants[1]: a variant without ops"),
        ("[recipe]", "[[recipe.companions]]\nname = 'x'\nwhy = 'x'\n[recipe]", "companions[1]: a companion has ops"),
        (SET_CONST, OPS["replace_stmt"].replace("x = {", "{_x} = {"), "{_x} stands in no `old` or `anchor`"),
        ('id = "rate"', 'id = "other"', "id is 'other'; it must be the file's name, 'rate'"),
        ('id = "rate"', 'id = "Rate"', "id: "),
        ('family = "learning-rate"', 'family = "luck"', "family: "),
        ("{rate}", "{speed}", "recipe.ops[1].value: {speed} is no declared knob"),
        ("{rate}", "0.5", "knobs.rate: no op uses it"),
        ("[knobs.rate]", "[knobs.current]", "knobs.current: "),
        ("[knobs.rate]", "[knobs.Rate]", "knobs.Rate"),
        ("{rate}", "{rate} +", "recipe.ops[1].value: the code does not parse"),
        ("{rate}", "{rate}; X = 1", "recipe.ops[1].value: the code does not parse"),
        ("{rate}", "X = {rate}", "recipe.ops[1].value: the code does not parse"),
        ("{rate}", "{rate}  # fast", "recipe.ops[1].value: the code does not parse"),
        ("{rate}", "{rate}) + (1", "recipe.ops[1].value: the code does not parse"),
        ("{rate}", "(" * 150 + "{rate}", "recipe.ops[1].value: the code does not parse"),
        (SET_CONST, OPS["replace_stmt"].replace("x = {", "x = ({"), "recipe.ops[1].new: the code does not parse"),
        (SET_CONST, OPS["replace_stmt"].replace("{rate}", "{current}"), "recipe.ops[1].new: {current} stands for"),
        (SET_CONST, OPS["replace_stmt"].replace("x = 1", "# one"), "recipe.ops[1].old: it holds no statement"),
        (SET_CONST, OPS["insert_after"].replace("x = 1", "# {rate}"), "recipe.ops[1].anchor: it holds no statement"),
        (SET_CONST, OPS["add_method"].replace("def f(self): return", "x ="), "ops[1].code: it must be one function"),
        ("[recipe]", '[recipe]\nconflicts = ["luck"]', "recipe.conflicts: no method 'luck'"),
        ("Change the rate.", "Change\\u001b[2Jthe rate.", "summary: "),
        ("Change the rate.", "Change\\nthe rate.", "summary: "),
        ("Change the rate.", "Change \\u202e the rate.", "summary: "),
        ("Change the rate.", "x" * 121, "summary: "),
        ("It sets how", "It\\u0000sets how", "description: "),
        ("It sets how", "x" * 5_000, "description: "),
        ('aliases = ["LR"]', 'aliases = ["L\\u2028R"]', "aliases[1]: "),
        ('aliases = ["LR"]', 'aliases = [""]', "aliases[1]: "),
        ('name = "Rate"', 'name = "Rate"\n"\\u001b[2J\\n" = 1', "\\x1b[2J\\n"),
        ('name = "Rate"', 'name = "Rate"\n' + "k" * 5_000 + " = 1", "kkk…: Extra"),
        ('aliases = ["LR"]', "aliases = " + "[" * 5_000 + "]" * 5_000, ""),
    ],
)
def test_a_broken_method_is_refused_by_file_and_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in METHOD
    message = error_of(write_pack(tmp_path, rate=METHOD.replace(old, new)))
    assert message.startswith("rate.toml: ")
    assert words in message
    assert message.isprintable() or "TOML" in message
    assert len(message) < 500


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_op_with_code_can_be_written(tmp_path: Path, op: str) -> None:
    (method,) = read_pack(write_pack(tmp_path, rate=METHOD.replace(SET_CONST, op))).methods
    assert isinstance(apply_method(method, "def f():\n    x = 1\n\nclass C:\n    y = 1\n", {}), Applied)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("name = ", "pack.toml: not TOML"),
        ('name = "A Pack"\nversion = "1"\nlicense = "MIT"\n', "pack.toml: name: "),
        ('name = "a"\nversion = 1\nlicense = "MIT"\n', "pack.toml: version: "),
        ('name = "a"\nversion = "1"\n', "pack.toml: license: Field required"),
        (MANIFEST + "x = 1\n", "pack.toml: x: Extra"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, manifest: str, words: str) -> None:
    assert words in error_of(write_pack(tmp_path, manifest))


@pytest.mark.parametrize("alias", ["LR", "lr", "Rate", "rate"])
def test_a_name_used_by_two_methods_is_refused(tmp_path: Path, alias: str) -> None:
    other = METHOD.replace('id = "rate"', 'id = "tempo"').replace('name = "Rate"', 'name = "Tempo"')
    write_pack(tmp_path, rate=METHOD, tempo=other.replace('aliases = ["LR"]', f'aliases = ["{alias}"]'))
    assert error_of(tmp_path).startswith(f"tempo.toml: aliases: '{alias.casefold()}' names rate too")


def test_a_method_may_repeat_its_own_name(tmp_path: Path) -> None:
    text = METHOD.replace('aliases = ["LR"]', 'aliases = ["LR", "lr", "RATE"]')
    assert len(read_pack(write_pack(tmp_path, rate=text)).methods) == 1


def test_a_folder_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    assert "no pack.toml" in error_of(tmp_path)
    assert "a pack is a folder" in error_of(tmp_path / "missing")
    assert "a pack is a folder" in error_of(write_pack(tmp_path) / "pack.toml")


def test_files_that_are_not_plain_are_refused(tmp_path: Path) -> None:
    linked = write_pack(tmp_path / "linked")
    (tmp_path / "rate.txt").write_text(METHOD)
    (linked / "rate.toml").symlink_to(tmp_path / "rate.txt")
    assert error_of(linked).startswith("rate.toml: a link")
    lost = write_pack(tmp_path / "lost")
    (lost / "rate.toml").symlink_to(tmp_path / "nowhere")
    assert error_of(lost).startswith("rate.toml: a link")
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    (manifest / "pack.toml").symlink_to(linked / "pack.toml")
    assert error_of(manifest).startswith("pack.toml: a link")
    nested = write_pack(tmp_path / "nested")
    (nested / "rate.toml").mkdir()
    assert error_of(nested).startswith("rate.toml: not a plain file")
    pipe = write_pack(tmp_path / "pipe")
    os.mkfifo(pipe / "rate.toml")
    assert error_of(pipe).startswith("rate.toml: not a plain file")


def test_a_large_file_and_one_that_is_not_utf_8_are_refused(tmp_path: Path) -> None:
    large = write_pack(tmp_path / "large", rate=METHOD + "# " + "x" * 2**20)
    assert re.fullmatch(r"rate\.toml: [0-9,]+ bytes, over the limit of 1 MiB; make it smaller", error_of(large))
    latin = write_pack(tmp_path / "latin")
    (latin / "rate.toml").write_bytes(METHOD.replace("Rate", "Räte").encode("latin-1"))
    assert error_of(latin).startswith("rate.toml: not UTF-8")


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_pack_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = write_pack(tmp_path_factory.mktemp("pack"))
    quoted = "".join(f"\\U{ord(char):08x}" for char in text)
    for content in (text, METHOD.replace('"{rate}"', f'"{quoted}"'), METHOD.replace('"LR"', f'"{quoted}"')):
        (folder / "rate.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(PackError):
            read_pack(folder)


# ----------------------------------------------------------------------------------------------- hash


def test_equal_content_has_an_equal_hash_and_any_change_another(tmp_path: Path) -> None:
    first = read_pack(write_pack(tmp_path / "one", rate=METHOD)).content_hash
    assert read_pack(write_pack(tmp_path / "other", rate=METHOD)).content_hash == first
    changed = {
        read_pack(write_pack(tmp_path / "comment", rate=METHOD + "# x\n")).content_hash,
        read_pack(write_pack(tmp_path / "version", MANIFEST.replace('"1"', '"2"'), rate=METHOD)).content_hash,
        read_pack(write_pack(tmp_path / "empty")).content_hash,
        read_pack(write_pack(tmp_path / "name", tempo=METHOD.replace('id = "rate"', 'id = "tempo"'))).content_hash,
        first,
    }
    assert len(changed) == 5


def test_other_files_do_not_count(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "pack")
    (tmp_path / "pack" / "README.md").write_text("A pack.")
    assert read_pack(tmp_path / "pack").content_hash == read_pack(SHIPPED).content_hash


# ---------------------------------------------------------------------------------------------- guide


def test_the_guide_s_example_is_a_pack_that_fits_the_trainer(tmp_path: Path) -> None:
    manifest, example, other = re.findall(
        r"^```toml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    folder = write_pack(tmp_path, manifest)
    (folder / "gated-mlp.toml").write_text(example)
    (folder / "logit-gain.toml").write_text(other)
    method, gain = read_pack(folder).methods
    trainer = (ROOT / "trainer" / "train.py").read_text(encoding="utf-8")
    made = apply_method(method, trainer, {})
    assert isinstance(made, Applied), made
    assert len(made.changes) == 5
    assert detect(method, made.text) is Presence.PRESENT
    script = (ROOT / "tests" / "data" / "single_file.txt").read_text(encoding="utf-8")
    for text, group in ((trainer, "groups.append(adam"), (script, "x0_params.append(self.logit_gain)")):
        made = apply_method(gain, text, {})
        assert isinstance(made, Applied), made
        assert f"{group}" in made.text
        assert len(made.changes) == 4
        assert detect(gain, made.text) is Presence.PRESENT


def test_the_guide_names_every_op_family_and_form_of_refusal() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for op in ("set_const", "set_local", "set_default", "set_kwarg", *OPS):
        assert f"| `{op}` |" in guide
    families = guide[guide.index("**Families:**") :].split(". ")[0]
    assert tuple(re.findall(r"`([a-z-]+)`", families)) == FAMILIES
    (method,) = (each for each in read_pack(SHIPPED).methods if each.id == "muon-lr")
    answer = apply_method(method, "EMBEDDING_LR = 0.6\nMATRIX_RATE = 0.04\n", {})
    assert isinstance(answer, Refused)
    assert answer.looked_for in guide
    assert answer.reason in guide
