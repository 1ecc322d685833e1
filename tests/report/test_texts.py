from whence.report.texts import for_page, for_terminal, in_common

ESCAPE = "\x1b[31mred\x07\x00\x7f\x9b"


def test_control_characters_are_shown_as_signs():
    assert for_page(ESCAPE) == "␛[31mred␇␀␡�"
    assert for_terminal(ESCAPE) == "␛[31mred␇␀␡�"


def test_a_page_keeps_lines_tabs_and_every_script():
    text = "line\n\tשלום 😀 \u202enow"
    assert for_page(text) == text


def test_a_terminal_gets_one_line_that_cannot_turn_around():
    assert for_terminal("a\n\tb\r\u2028c\u202ed\xa0e") == "a  b  c�d e"
    assert for_terminal("क्\u200dष") == "क्\u200dष"  # a joiner is part of how words are written


def test_half_a_surrogate_pair_which_no_file_can_hold_is_replaced():
    assert for_page("a\ud800b").encode("utf-8").decode() == "a�b"
    assert for_terminal("a\ud800b") == "a�b"


def test_all_texts_are_changed_names_included_and_nothing_else():
    value = {"a\x1b": ["\x1b", 1, None, 2.5, True, {"b": "\x1b"}]}
    assert for_page(value) == {"a␛": ["␛", 1, None, 2.5, True, {"b": "␛"}]}
    assert for_terminal(value) == for_page(value)
    assert value == {"a\x1b": ["\x1b", 1, None, 2.5, True, {"b": "\x1b"}]}


def test_pieces_of_a_text_give_it_back_whatever_it_holds():
    for text in ("", "  ", "<b>Claim</b> your £1,000 prize\nNOW", "数据 数据 prize", "a-b_c"):
        assert "".join(piece for piece, _ in in_common(text, "claim a prize now 数据")) == text


def test_words_in_common_are_found_whatever_their_case_but_not_the_short_ones():
    found = [
        piece
        for piece, is_common in in_common("The PRIZE is the Prize", "the prize is")
        if is_common
    ]
    assert found == ["PRIZE", "Prize"]
    assert in_common("surprize", "prize") == [("surprize", False)]
