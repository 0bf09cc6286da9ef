"""Studies: every cell of a paper's table with several seeds, judged beside the paper's claims.

A cell is one network on one dataset with one setting of noise and BN: a number in a paper's table. A member
is one run of a cell, with one seed; a finished run is what it leaves.

`command` is `dropbn study`. The files of `configs/` describe tables in the terms of `cells` and `claims`.
`members` lists the runs of a table, `work_items` those that are left to train; `training` trains them and
`progress` shows it. `finished_runs` reads and publishes what they leave, with `numbers` and `provenance`.
`verdicts` judges the claims by `estimates`. `table`, `table_text` and the files of figures show the results;
`papers` holds the papers' own curves. For a single run use `train.py`.
"""

from dropbn.errors import extra

with extra("train"):
    import ml_collections  # noqa: F401 - nothing here works without it
