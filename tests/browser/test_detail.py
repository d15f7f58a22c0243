"""The detail of a row: who pays whom and how much, and the chart of its settlements."""

from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support.browser import Browser
from tests.support.page_files import HISTORY_FILE, aged, market, settlements, write, write_history
from tests.support.programs import Server

HISTORY = settlements(8)
ROWS = HISTORY["data"]


@pytest.fixture
def page(browser: Browser, folder: Path, server: Server) -> Browser:
    """The page over a market of now, with the row of BTCUSDT open and its chart drawn."""
    write(folder, {**market(), "NEWUSDT": aged(1)})
    incomplete = settlements(4, 10, complete=False)
    write_history(folder, {"BTCUSDT": HISTORY, "ETHUSDT": incomplete, "NEWUSDT": {**HISTORY, "data": []}})
    browser.open(server, chosen="#open=BTCUSDT")
    browser.wait("records.size && past.rows.length > 200 && readout.checkVisibility()", "the chart")
    return browser


def described(row: dict[str, float], total: float) -> str:
    """Return the end of what the page says of a settlement."""
    rate, estimate = (f"{row[name] * 100:+.4f}%" for name in ("fundingRate", "lastEstimate"))
    payer = "longs" if row["fundingRate"] > 0 else "shorts"
    words = f"settled {rate}, {payer} paid · estimated {estimate} · running sum {total * 100:+.3f}% · every 8 h"
    return words.replace("-", "\N{MINUS SIGN}")


def test_it_is_said_who_pays_whom(page: Browser) -> None:
    """In a sentence, for either sign and for none."""
    page.wait("document.getElementById('pays').textContent", "the sentence")
    assert page.text("#pays").startswith("Longs pay shorts 0.0100% every 8 h, next in 2:00:")
    page.run("openRow('ETHUSDT')")
    assert page.text("#pays").startswith("Shorts pay longs 0.0250% every 4 h")
    page.run("openRow(order.find(record => record.fundingRate === 0).symbol)")
    assert page.text("#pays").startswith("Nobody pays: 0.0000%")


def test_it_is_said_what_is_wrong_with_the_record(page: Browser) -> None:
    """An interval that is assumed, a halt, and an age at which nobody should trade."""
    page.run("openRow('HALTUSDT')")
    assert "The interval is assumed: Binance has not confirmed it yet. Halted:" in page.text("#pays")
    page.run("openRow('OLDUSDT')")
    assert page.text("#pays").endswith("This is stale: do not trade on it.")


def test_what_a_position_pays_is_counted(page: Browser) -> None:
    """For the size that is asked for; what is not known is left out."""
    assert page.text("#cost").startswith("At this rate a long pays 3.00 USDT a day (1.00 each time), and a short")
    assert page.text("#cost").endswith("A long has paid 3.00 in 24 h, 21.00 in 7 days.")
    page.element("#size").send_keys(Keys.BACKSPACE * 5, "2,500.50")
    assert "a long pays 0.75 USDT a day (0.25 each time)" in page.text("#cost")
    page.element("#size").send_keys(Keys.BACKSPACE * 9, "much")
    assert page.text("#cost") == "Enter a size above 0."
    page.element("#size").send_keys(Keys.BACKSPACE * 4, "1000")
    page.run("openRow('ETHUSDT')")
    assert page.text("#cost") == "At this rate a short pays 1.50 USDT a day (0.25 each time), and a long receives it."


def test_the_chart_shows_every_settlement(page: Browser) -> None:
    """A bar by its sign and a mark for its estimate; the sum, the average and the quality of the estimates are told."""
    bars = {
        name: sum((row["fundingRate"] < 0) is (name == "negative") for row in ROWS) for name in ("positive", "negative")
    }
    for name, count in bars.items():
        assert (
            page.run(f"return document.querySelector('#chart .{name}').getAttribute('d').match(/M/g).length") == count
        )
    assert page.run("return document.querySelector('#chart .estimate').getAttribute('d').match(/M/g).length") == len(
        ROWS
    )
    total = sum(row["fundingRate"] for row in ROWS)
    assert page.text("#history-note").startswith(f"270 settlements · sum {total * 100:+.3f}% · average +")
    assert "estimates off by 0.0002" in page.text("#history-note")
    labels = page.run("return [...document.querySelectorAll('#chart text')].map(one => one.textContent)")
    assert {"0.00%", "+0.02%", "+0.04%"} <= set(labels)
    assert len({label for label in labels if label[0].isdigit() and "%" not in label}) >= 5  # days


def test_a_settlement_is_read_by_keys(page: Browser) -> None:
    """From the newest: one by one, ten by ten, to both ends; a screen reader is given the same words."""
    sums = [sum(row["fundingRate"] for row in ROWS[: n + 1]) for n in range(len(ROWS))]
    page.run("chart_ = document.getElementById('chart'); chart_.focus()")
    last = len(ROWS) - 1
    for key, place in (
        (Keys.ARROW_LEFT, last - 1),
        (Keys.PAGE_DOWN, last - 11),
        (Keys.HOME, 0),
        (Keys.ARROW_LEFT, 0),
        (Keys.ARROW_RIGHT, 1),
        (Keys.END, last),
    ):
        page.press(key)
        assert page.text("#readout").endswith(described(ROWS[place], sums[place]))
        slider = page.element("#chart")
        assert (slider.aria_role, slider.accessible_name) == ("slider", "Settlements")
        assert slider.get_attribute("aria-valuenow") == str(place + 1)
        assert slider.get_attribute("aria-valuetext") == page.text("#readout")


def test_a_settlement_is_read_by_the_pointer(page: Browser) -> None:
    """The settlement nearest to it."""
    place = 100
    x = page.run(
        f"return chart.x(past.rows[{place}].fundingTime) + 1 - document.getElementById('chart').clientWidth / 2"
    )
    ActionChains(page.driver).move_to_element_with_offset(page.element("#chart"), int(x), 0).perform()
    assert described(ROWS[place], sum(row["fundingRate"] for row in ROWS[: place + 1])) in page.text("#readout")


def test_the_numbers_can_be_read_as_a_table(page: Browser) -> None:
    """By day, the newest first; as CSV, every settlement."""
    page.element("#figures summary").click()
    page.wait("document.querySelectorAll('#figures tbody tr').length >= 90", "the days")
    head = page.run("return [...document.querySelectorAll('#figures thead th')].map(one => one.textContent)")
    assert head == ["Day", "Settlements", "Paid by longs", "Running sum"]
    total = f"{sum(row['fundingRate'] for row in ROWS) * 100:+.3f}%"
    assert page.run("return document.querySelector('#figures tbody td:last-child').textContent") == total
    assert str(page.element("#csv").get_attribute("href")).endswith("&format=csv")


def test_fewer_days_can_be_chosen(page: Browser) -> None:
    """The sum is then that of these days."""
    page.element("#days").send_keys("7 days")
    page.wait("past.rows.length <= 21 && past.rows.length > 15", "the settlements of a week")
    assert page.text("#history-note").startswith(f"{page.run('return past.rows.length')} settlements · sum ")


def test_an_incomplete_history_is_said_and_has_no_sum(page: Browser) -> None:
    """A sum without some of its parts would be wrong."""
    page.run("openRow('ETHUSDT')")
    page.wait("document.getElementById('history-note').textContent.startsWith('Incomplete')", "the note")
    assert "running sum" not in page.text("#readout")
    assert page.run("return document.querySelector('#chart .sum')") is None


def test_an_incomplete_history_is_asked_for_again(page: Browser, folder: Path) -> None:
    """While the daemon fills it. The settlement that was chosen stays chosen."""
    page.run("openRow('ETHUSDT')")
    page.wait("document.getElementById('history-note').textContent.startsWith('Incomplete')", "the note")
    page.run("pointAt(7)")
    chosen = page.text("#readout").partition(" \N{MIDDLE DOT} ")[0]
    write_history(folder, {"ETHUSDT": settlements(4, 20)})
    page.run("reportedAt = -1e9")
    page.wait("document.getElementById('history-note').textContent.includes(' settlements')", "the whole history")
    assert page.text("#readout").startswith(chosen)


def test_without_settlements_there_is_no_chart(page: Browser) -> None:
    """It is said why."""
    page.run("openRow('NEWUSDT')")
    page.wait("document.getElementById('history-note').textContent.startsWith('No settlement in this time.')", "words")
    assert not page.element("#chart").is_displayed()


def test_without_a_history_there_is_no_chart(page: Browser, folder: Path) -> None:
    """The server's reason is shown."""
    (folder / HISTORY_FILE).unlink()
    page.run("openRow('ETHUSDT')")
    page.wait("document.getElementById('history-note').textContent.startsWith('No settlement history: ')", "words")
    assert not page.element("#chart").is_displayed()


def test_it_leads_to_binance(page: Browser) -> None:
    """Without telling Binance where from."""
    link = page.element("#binance")
    assert link.get_attribute("href") == "https://www.binance.com/en/futures/BTCUSDT"
    assert link.get_attribute("rel") == "noopener noreferrer"
