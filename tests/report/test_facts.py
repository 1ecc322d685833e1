from whence.report.facts import choose_facts


def named(report):
    return {fact["name"]: fact["value"] for fact in choose_facts(report)}


def test_facts_keep_their_order_and_leave_out_what_was_not_measured():
    report = {"damping": 0.1, "method": "influence", "matrix": None, "unheard_of": 3}
    assert list(named(report)) == ["Method", "Damping"]


def test_names_become_words_and_numbers_stay_numbers():
    facts = named({"removal": "first_order", "gradient_norm": 2e-7, "leverage_fallbacks": 0})
    assert facts["Removal"] == "first order"
    assert facts["Gradient norm"] == 2e-7
    assert facts["Leverage fallbacks"] == 0


def test_of_several_residuals_the_worst_is_told():
    assert named({"residual": [1e-9, 3e-7]})["Residual of the solve"] == 3e-7


def test_parameters_that_are_left_out_are_said():
    (fact,) = choose_facts({"parameters_covered": 650, "parameters_total": 2000})
    assert fact["value"] == "650 of 2,000"
    assert "left out" in fact["note"]
    assert "none" not in fact["note"]


def test_fingerprints_are_shortened():
    fingerprint = {"parameters": "9f3c" * 8}
    assert named({"fingerprint": fingerprint})["Fingerprint of the parameters"] == "9f3c9f3c9f3c"
