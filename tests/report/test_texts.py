from whence.report.texts import for_page, for_terminal

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
