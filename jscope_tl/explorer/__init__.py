"""The explorer: a page in the browser for `js.attribute` and related functions.

`requests` defines and checks the requests, `answers` calls the entry points, `work` runs one call at a time, `server` is the HTTP server, and
`static` is the page.
"""
