"""Pages: a run, a study or an examination as one HTML text that contains all it shows and loads nothing.

`run`, `study` and `examination` make the text; `command` is `dropbn report`, `examine` is `dropbn examine`.
For numbers to go on with, take the files of a workdir or the rows of a result.
"""
