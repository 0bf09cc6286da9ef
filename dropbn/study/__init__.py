"""Studies: every cell of a paper's table with several seeds, judged beside the paper's claims.

`command` is `dropbn study`. `cells` and `claims` are what the files of `configs/` say of a table, `members`
and `jobs` what is trained, `finished_runs` what is left of it, `table` and `figures` what is shown. `papers`
holds the papers' own curves. For a single run use `train.py`.
"""
