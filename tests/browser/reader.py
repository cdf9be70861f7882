"""What a reader does with a page, and what the page then shows."""

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

# Every element that holds text of its own and is seen, with its colour and the colour behind it, as sRGB in 0..255.
COLOURS = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const over = (top, below) => {
  const alpha = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * below[i]);
};
const behind = element => {
  if (!element) return [255, 255, 255];
  const colour = parse(getComputedStyle(element).backgroundColor);
  return colour.length > 3 && colour[3] === 1 || colour.length === 3
    ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
};
const found = [];
for (const element of document.querySelectorAll(arguments[0])) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility()) continue;
  const style = getComputedStyle(element), svg = element.closest("svg");
  const ink = parse(svg ? style.fill : style.color), ground = behind(svg ? svg.parentElement : element);
  const opacity = svg ? Number(style.fillOpacity) : 1;
  const shown = over([...ink.slice(0, 3), (ink.length > 3 ? ink[3] : 1) * opacity], ground);
  found.push([element.textContent.slice(0, 40), element.className.baseVal ?? element.className, shown, ground]);
}
return found;
"""


class Reader:
    """A person at the browser."""

    def __init__(self, driver):
        self.driver, self.opened = driver, 0

    def show(self, *, dark, width):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def open(self, path):
        self.driver.get(path.resolve().as_uri())
        self.opened += 1

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def shown(self, selector):
        return [element for element in self.all(selector) if element.is_displayed()]

    def background(self, selector):
        script = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
        return self.driver.execute_script(script, selector)

    def overflow(self):
        """By how much the page is wider than the screen, in pixels."""
        script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return self.driver.execute_script(script)

    def unfold(self):
        for summary in self.all("details:not([open]) > summary"):
            if summary.is_displayed():
                summary.click()

    def contrasts(self, selector="body *"):
        """(text, class, contrast) of everything that is seen."""
        return [(text, name, contrast(*pair)) for text, name, *pair in self.driver.execute_script(COLOURS, selector)]

    def out_of_reach(self):
        """Boxes that scroll, but that Tab does not stop at."""
        script = """
        return [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
          && (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "auto"
            || e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY === "auto")
          && e.getAttribute("tabindex") !== "0").map(e => e.outerHTML.slice(0, 200));
        """
        return self.driver.execute_script(script)

    def beyond_pictures(self):
        """Texts that begin or end outside of their picture."""
        script = """
        return [...document.querySelectorAll("svg.chart text")].filter(t => {
          const own = t.getBoundingClientRect(), whole = t.closest("svg").getBoundingClientRect();
          return t.checkVisibility() && (own.left < whole.left - 1 || own.right > whole.right + 1);
        }).map(t => t.textContent);
        """
        return self.driver.execute_script(script)

    def tab_stops(self):
        """What Tab reaches, from the start of the page until it leaves it, as `tag id or text`."""
        stops = []
        for _ in range(300):
            self.driver.switch_to.active_element.send_keys(Keys.TAB)
            element = self.driver.switch_to.active_element
            if element.tag_name == "body" or element.id in {stop.id for stop in stops}:
                break
            stops.append(element)
        return stops


def contrast(one, other):
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""
    dark, light = sorted(luminance(colour) + 0.05 for colour in (one, other))
    return light / dark


def luminance(colour):
    """WCAG 2.2: relative luminance of sRGB in 0..255."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
