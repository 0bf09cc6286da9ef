"""Studies: every cell of a paper's table with several seeds, judged beside the paper's claims.

A cell is one network on one dataset with one setting of noise and BN: a number in a paper's table. A member is
one run of a cell, with one seed; a finished run is what it leaves.

`command` is `dropbn study`. The files of `configs/` describe a table in the terms of `cells` and `claims`.
`members` lists its runs, `work_items` what is left to train, `training` trains it, and `progress` shows it.
`finished_runs` reads and publishes what the members leave, with their `numbers` and `provenance`. `verdicts`
judges the claims by `estimates`. `table`, `table_text` and the files of figures show all of it; `papers` holds
the papers' own curves. For a single run use `train.py`.
"""
