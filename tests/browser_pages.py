"""Pages of the analysis in a real browser."""

from pathlib import Path


def open_page(browser, report: Path, width: int = 1280, scheme: str = "light", fragment: str = ""):
    """Open a report; the page collects complaints and network requests."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.complaints, page.outside = [], []
    page.on(
        "console",
        lambda message: (
            page.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            page.outside.append(request.url)
            if request.url.split(":")[0] not in ("file", "data", "blob")
            else None
        ),
    )
    page.goto(report.as_uri() + fragment)
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    return page


def undrawn(page) -> list[str]:
    """Return the figures of a page that show no trace."""
    traces = "svg.main-svg .trace path, svg.main-svg .trace rect, svg.main-svg .violin"
    return page.locator("figure:has(.plot)").evaluate_all(
        "(all, traces) => all.filter(one => !one.querySelector(traces)).map(one => one.id)", traces
    )
