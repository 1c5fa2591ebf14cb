"""Opens pages in headless Chromium and measures what a reader would see; no driver, only the browser's own command line."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Frame", "chromium", "measure"]

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

_MEASURE = """
<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const seen = (element) => { const r = element.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const name = (element) => `${element.tagName} ${element.className?.baseVal ?? element.className} ${element.textContent.trim().slice(0, 40)}`;
  const hidden = (element) => element.closest("thead") && getComputedStyle(element.closest("thead")).position === "absolute";
  const all = [...document.body.querySelectorAll("*")].filter((e) => seen(e) && !hidden(e) && e.tagName !== "SCRIPT");
  const outside = (e, box) => {
    const r = e.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1;
  };
  const svgs = [...document.querySelectorAll("figure svg")].filter(seen);
  const texts = (svg) => [...svg.querySelectorAll("text")].filter(seen);
  const meet = (a, b) => {
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    // a pixel of room for the box around letters
    return p.left + 1 < q.right - 1 && q.left + 1 < p.right - 1 && p.top + 3 < q.bottom - 3 && q.top + 3 < p.bottom - 3;
  };
  const result = {
    title: document.title,
    innerWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches, scrollWidth: document.documentElement.scrollWidth, clientWidth: width,
    overflowing: all.filter((e) => {
      const r = e.getBoundingClientRect();
      return r.right > width + 1 || r.left < -1 || (!e.closest("svg") && e.clientWidth && e.scrollWidth > e.clientWidth + 1);
    }).map(name),
    clippedLabels: svgs.flatMap((svg) => texts(svg).filter((t) => outside(t, svg.getBoundingClientRect())).map(name)),
    collidingLabels: svgs.flatMap((svg) => texts(svg).flatMap((a, i, every) =>
      every.slice(i + 1).filter((b) => meet(a, b)).map((b) => `${name(a)} | ${name(b)}`))),
    smallestLabel: Math.min(...svgs.flatMap((svg) => texts(svg).map((t) => {
      return parseFloat(getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; }))),
    headings: [...document.querySelectorAll("h1, h2, h3")].filter(seen).map((h) => h.textContent.trim()),
    status: document.querySelector("#verdict h2").textContent.trim(),
    sentence: document.querySelector("#verdict .sentence").textContent.trim(),
    figures: [...document.querySelectorAll("figure")].map((f) => [...f.querySelectorAll("svg")].filter(seen).length),
    tables: [...document.querySelectorAll("table")].filter(seen).map((t) => t.querySelectorAll("tbody tr").length),
    low: all.filter((e) => !e.closest("svg") && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      let back = e; while (back && /, 0\\)$|transparent/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
      const a = light(getComputedStyle(e).color), b = light(back ? getComputedStyle(back).backgroundColor : "rgb(255, 255, 255)");
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), name(e)]; }).filter(([ratio]) => ratio < 4.5),
  };
  const out = document.createElement("pre");
  out.className = "measured"; out.dataset.frame = frameElement.id; out.textContent = JSON.stringify(result); parent.document.body.append(out);
});
</script>
"""


def chromium() -> str:
    """The browser's path; skips the test, loudly, where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no headless browser ({', '.join(_NAMES)}) is installed: nothing looked at the page of a report")
    return found


@dataclass(frozen=True)
class Frame:
    """A page as it is looked at."""

    page: str
    width: int
    height: int
    dark: bool = False

    def tag(self, name: str) -> str:
        """The page in a frame of its size, where it measures itself; the page as it is allows no script at all."""
        copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", self.page).replace("</body>", f"{_MEASURE}</body>")
        scheme = "dark" if self.dark else "light"
        style = f"width: {self.width}px; height: {self.height}px; border: 0; color-scheme: {scheme}"
        return f'<iframe id="{name}" style="{style}" srcdoc="{html.escape(copy)}"></iframe>'


def measure(frames: Mapping[str, Frame], folder: Path) -> dict[str, dict[str, Any]]:
    """Open pages in one browser, and return what each found about itself. A window is never narrower than 500, a frame may be.

    Args:
        folder: receives the copies and the browser's profile.
    """
    browser = chromium()
    path = folder / "frames.html"
    path.write_text("<!doctype html><body>" + "".join(frame.tag(name) for name, frame in frames.items()), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    dom = done.stdout.decode("utf-8", errors="replace")
    found = re.findall(r'<pre class="measured" data-frame="([^"]+)">(.*?)</pre>', dom, flags=re.DOTALL)
    assert {name for name, _text in found} == set(frames), (
        f"{browser} did not show all pages: {done.stderr.decode(errors='replace')[-2000:]}"
    )
    return {name: json.loads(html.unescape(text)) for name, text in found}
