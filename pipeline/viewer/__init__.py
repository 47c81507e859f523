"""`stepdistill view`: a run as pages on localhost, to browse, search, follow rows and mark them.

    rows.py      pages of rows and what is looked for in them, without an index and without reading more than a page needs
    story.py     all that is known of one row, as data
    app.py       the addresses, what may open them, and the server
    *.jinja, style.css

See docs/viewer.md.
"""
