"""A page of `regiontok.viewing` in a browser."""


class Tab:
    """A page that is open, and all that it complained of."""

    def __init__(self, chromium, file, **options):
        self.context = chromium.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        self.page = self.context.new_page()
        self.complaints = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.complaints.append(request.url) if request.url[:5] not in ("file:", "data:") else None)  # fmt: skip
        self.page.goto(file.as_uri())
        self.settle()

    def settle(self):
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def slide(self, name, value):
        self.page.evaluate(
            "([id, value]) => { const slider = document.getElementById(id); slider.value = value;"
            "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change')); }",
            [name, value],
        )
        self.settle()

    def sizes(self):
        """Patches of every region, from the table of all."""
        if self.page.locator("#all").get_attribute("open") is None:
            self.page.locator("summary").click()
        self.settle()
        return [int(cell) for cell in self.page.locator("#rows td:nth-child(2)").all_inner_texts()]

    def canvas(self):
        return self.page.evaluate("() => document.getElementById('canvas').toDataURL()")

    def point(self, row, col, rows=24, cols=24):
        """Move the pointer to the middle of a patch of a letterboxed image."""
        box = self.page.locator("#image").bounding_box()
        side = box["width"] / cols
        above = (rows * side - box["height"]) / 2
        self.page.mouse.move(box["x"] + (col + 0.5) * side, box["y"] + (row + 0.5) * side - above)
        self.settle()

    def close(self):
        assert self.complaints == []
        self.context.close()
