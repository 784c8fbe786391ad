"""The explorer: `js.attribute` and what goes with it, asked from a page in the browser.

`requests` says what can be asked, `answers` calls the entry points, `work` runs one call at a time, `server` speaks HTTP, `static` is the page.
"""
