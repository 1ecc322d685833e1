"""What holds for every view in a real page: readable by everybody, on every screen."""

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


def first_view(page, explorer) -> None:
    """Opens the first view, and waits for the model."""
    page.goto(explorer.address)
    assert "token" not in page.url  # nor in the history
    page.locator('.state[data-state="ready"]').wait_for()


def check_view(page) -> None:
    """A view in the light and in the dark, on a desktop and on a phone."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        check_access(page)
    check_widths(page)


def check_access(page) -> None:
    """No serious finding of axe."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious]


def check_widths(page) -> None:
    """Nothing sticks out of a phone."""
    page.set_viewport_size(PHONE)
    size = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(size) <= 0, page.url
    page.set_viewport_size(WIDE)
