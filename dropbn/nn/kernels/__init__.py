"""Fast forms of plain formulas, kept apart so that the layers read like a textbook.

Each module says what it brings, where its plain form stands and when it can be deleted; a test compares the
two. Use the layers of `dropbn.nn` instead.
"""
