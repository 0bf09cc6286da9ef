"""Fast forms of plain formulas, kept apart so that the layers read like a textbook.

Each module names the plain form that it replaces, says what it brings, and says when to delete it. A test
compares the two forms. To build a network, use the layers of `dropbn.nn`, which call these.
"""
