from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.text import estimate_tokens


def test_a_sentence_costs_about_a_token_a_word_and_code_one_a_sign() -> None:
    assert 7 <= estimate_tokens("The quick brown fox jumps over the lazy dog") <= 11
    assert 12 <= estimate_tokens("x = self.c_fc(x).view(B, T, -1)") <= 24


@given(st.text(), st.text())
def test_more_text_never_costs_less(one: str, two: str) -> None:
    assert estimate_tokens(one + " " + two) == estimate_tokens(one) + estimate_tokens(two)
