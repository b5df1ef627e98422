import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code.hashes import group_hash, number, program_hash, tree_hash, what_ran

SOURCE = '"""Train."""\n\nLR = 0.8  # fast\n\n\ndef f(x):\n    """Say."""\n    return (x, LR)\n'


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("  # fast", ""),
        SOURCE.replace("\n", "\r\n"),
        "\ufeff" + SOURCE,
        SOURCE.replace("0.8", ".80"),
        SOURCE.replace("    ", "\t"),
        SOURCE.replace("(x, LR)", "x, LR"),
        SOURCE.replace("LR = 0.8", "LR = (\n    0.8\n)"),
    ],
)
def test_comments_and_layout_do_not_count(same: str) -> None:
    assert same != SOURCE
    assert program_hash(same) == program_hash(SOURCE)


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.replace("0.8", "0.9"),
        SOURCE.replace("0.8", "'0.8'"),
        SOURCE.replace("(x, LR)", "[x, LR]"),
        SOURCE.replace("def f(x)", "def f(x=None)"),
        SOURCE.replace("def f(x)", "def f(*x)"),
        SOURCE.replace("def f", "async def f"),
        SOURCE + "f(1)\n",
        SOURCE.replace("Say.", "Say it otherwise."),  # a docstring may be the prompt
        SOURCE.replace('    """Say."""\n', ""),
        SOURCE.replace('"""Train."""\n', "# Train\n"),
        SOURCE.replace("    return", "    'said'\n    return"),
    ],
)
def test_every_change_of_the_program_counts(other: str) -> None:
    assert other != SOURCE
    assert program_hash(other) != program_hash(SOURCE)


def test_a_text_that_does_not_parse_is_known_by_its_bytes() -> None:
    assert program_hash("def f(:\n    x") != program_hash("def  f(:\n\tx\n")
    assert program_hash("def f(:") == program_hash("def f(:")


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("params.h", "#define BLOCK 8\n", "#define BLOCK 64\n"),
        ("prompt.md", "# Be brief\n", "# Think first\n"),
        ("config.yaml", "model:\n  width: 64\ndata:\n  noise: 1\n", "model:\n  width: 64\n  data:\n    noise: 1\n"),
        ("train.cu", "x = 1  // fast\n", "x = 1  // slow\n"),
        ("Makefile", "all:\n\tcc a.c\n", "all:\n    cc a.c\n"),
    ],
)
def test_other_languages_are_known_by_their_bytes(name: str, one: str, other: str) -> None:
    assert program_hash(one, name) != program_hash(other, name)
    assert group_hash(one, name) != group_hash(other, name)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_has_a_hash(source: str) -> None:
    assert len(program_hash(source)) == 64


@given(st.lists(st.sampled_from(SOURCE.splitlines(keepends=True)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_program_written_anew_is_the_same(lines: list[str]) -> None:
    source = "".join(lines)
    try:
        again = ast.unparse(ast.parse(source))
    except SyntaxError:
        return
    assert program_hash(again) == program_hash(source)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("2**18", 262144),
        ("1 << 18", 262144),
        ("-3", -3),
        ("(1 + 2) * 4 // 5 - 6 / 4", 0.5),
        (".8", 0.8),
        ("True", None),
        ("'1'", None),
        ("x + 1", None),
        ("1 % 2", None),
        ("1 / 0", None),
        ("1 << -1", None),
        ("1 << 1000", None),
        ("1.0 << 2", None),
        ("(2**64)**2", None),
        ("(-8)**0.5", None),
        ("((-8)**0.5)**2", None),
    ],
)
def test_numbers_are_calculated_without_running_code(code: str, value: float | None) -> None:
    found = number(ast.parse(code, mode="eval").body)
    assert found == value
    assert type(found) is type(value)


SEEDED = "import torch\nSEED = 42\nLR = 0.1\ntorch.manual_seed(1337)\nmain(seed=SEED, width=64)\n"


@pytest.mark.parametrize(
    "same",
    [
        SEEDED.replace("42", "7"),
        SEEDED.replace("1337", "0"),
        SEEDED.replace("42", "1").replace("1337", "5"),
    ],
)
def test_programs_that_differ_in_a_seed_alone_are_one_group(same: str) -> None:
    assert group_hash(same) == group_hash(SEEDED)
    assert program_hash(same) != program_hash(SEEDED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data_seed: int = 1\n", "data_seed: int = 2\n"),
        ("def f(x, seed=1, y=2): pass\n", "def f(x, seed=3, y=2): pass\n"),
        ("def f(*, seed=1): pass\n", "def f(*, seed=3): pass\n"),
        ("config = {'seed': 1, 'lr': 2}\n", "config = {'seed': 9, 'lr': 2}\n"),
        ("config['seed'] = 1\n", "config['seed'] = 9\n"),
        ("p.add_argument('--seed', type=int, default=1)\n", "p.add_argument('--seed', type=int, default=2)\n"),
        ("S = int(os.environ.get('SEED', '1'))\n", "S = int(os.environ.get('SEED', '2'))\n"),
        ("rng = np.random.default_rng(0)\n", "rng = np.random.default_rng(1)\n"),
        ("key = jax.random.PRNGKey(0)\n", "key = jax.random.PRNGKey(1)\n"),
        ("model = Forest(random_state=0)\n", "model = Forest(random_state=1)\n"),
        ("self.seed = 1\n", "self.seed = 2\n"),
        ("LR, SEED = 3, 1\n", "LR, SEED = 3, 2\n"),
        ("SEEDS = (1, 2)\n", "SEEDS = (3, 4)\n"),
    ],
)
def test_seeds_are_found_where_people_write_them(one: str, other: str) -> None:
    assert group_hash(one) == group_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("num_seeds = 1\n", "num_seeds = 2\n"),
        ("seeds = 1\n", "seeds = 2\n"),
        ("EVAL_SEEDS: int = 1\n", "EVAL_SEEDS: int = 2\n"),
        ("f(n_seeds=3, eval_num_seeds=4)\n", "f(n_seeds=3, eval_num_seeds=5)\n"),
        ("max_seed = 1\n", "max_seed = 2\n"),
        ("SEEDS = (1, 2)\n", "SEEDS = (1, 2, 3)\n"),
        ("LR, SEED = 3, 1\n", "LR, SEED = 4, 1\n"),
        ("SEED_LEN = 1\n", "SEED_LEN = 2\n"),
        ("USE_SEED = True\n", "USE_SEED = False\n"),
        ("f(seed=1, x=1)\n", "f(seed=1, x=2)\n"),
        ("LR = 1\n", "LR = 2\n"),
        ("SEED = 1\n", "SEED = LR\n"),
        ("def f(seed, x=1): pass\n", "def f(seed, x=2): pass\n"),
    ],
)
def test_what_is_no_seed_makes_another_group(one: str, other: str) -> None:
    assert group_hash(one) != group_hash(other)


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("config.yaml", "seed: 1\nlr: 2\n", "seed: 7\nlr: 2\n", True),
        ("config.yaml", "seed: 1\nlr: 2\n", "seed: 1\nlr: 3\n", False),
        ("config.json", '{"seed": 1, "lr": 2}', '{"seed": 22, "lr": 2}', True),
        ("config.toml", "data_seed = 1\n", "data_seed = 2\n", True),
        ("a.h", "#define SEED 1\n", "#define SEED 2\n", True),
        ("run.sh", "python t.py --seed 1 --lr 2\n", "python t.py --seed 3 --lr 2\n", True),
        ("a.c", "srand(1);\n", "srand(2);\n", True),
        ("config.yaml", "num_seeds: 1\n", "num_seeds: 2\n", False),
        ("net.jl", "W = rand(64)\n", "W = rand(128)\n", False),
        ("net.cpp", "auto w = torch::rand(64);\n", "auto w = torch::rand(128);\n", False),
        ("pick.js", "x = _.random(8)\n", "x = _.random(9)\n", False),
        ("fit.R", "set.seed(1)\n", "set.seed(2)\n", True),
        ("net.cpp", "torch::manual_seed(1);\n", "torch::manual_seed(2);\n", True),
        ("net.c", "srand(1);\n", "srand(2);\n", True),
        ("config.yaml", "seed: 1.5\n", "seed: 1.7\n", False),
        ("prompt.md", "Plant seed 1 first.\n", "Plant seed 2 first.\n", False),
    ],
)
def test_seeds_of_other_languages_are_found_by_their_name(name: str, one: str, other: str, *, same: bool) -> None:
    assert (group_hash(one, name) == group_hash(other, name)) is same


def test_what_ran_counts_all_that_it_could_see() -> None:
    one = what_ran(SEEDED, "train.py", ("a", "b"))
    reseeded = what_ran(SEEDED.replace("42", "1"), "train.py", ("a", "b"))
    beside = what_ran(SEEDED, "train.py", ("c", "d"))
    assert (one.group_key, one.run_key != reseeded.run_key) == (reseeded.group_key, True)
    assert one.run_key != beside.run_key
    assert one.group_key != beside.group_key


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (SOURCE.replace("  # fast", ""), True),
        (SOURCE.replace("\n", "\r\n"), True),
        ("\ufeff" + SOURCE, True),
        (SOURCE.replace("LR = 0.8", "LR = (\n    0.8\n)"), True),
        (SOURCE.replace("Say.", "Say it otherwise."), False),
        (SOURCE.replace('    """Say."""\n', ""), False),
        (SOURCE.replace("0.8", "0.9"), False),
    ],
)
def test_docstrings_count_where_a_program_may_read_them(other: str, same: bool) -> None:  # noqa: FBT001
    assert (tree_hash(other.encode()) == tree_hash(SOURCE.encode())) is same


@pytest.mark.parametrize("source", [b"def f(:", b"x = 1\0", b"(" * 5_000, b"# coding: nonsense\n", b"\xff\xfe"])
def test_what_does_not_parse_has_no_tree(source: bytes) -> None:
    assert tree_hash(source) is None
