"""The provenance of a run: what its numbers come from, and which runs may stand in one table."""

import datetime
import functools
import pathlib
import platform
import subprocess
from collections.abc import Iterable

from ml_collections import ConfigDict

import dropbn
from dropbn.errors import DropbnError
from dropbn.study.finished_runs import Cell, Finished
from dropbn.train import workdir

# A commit that changes what a run finds raises it: a table refuses members of several editions.
EDITION = 2


def of_run(config: ConfigDict) -> dict[str, str]:
    """What a run made now would come from: edition, commit, versions, device, date, digest of its config."""
    import flax
    import jax

    device = jax.local_devices()[0]
    machine = f" ({platform.machine()})" if device.platform == "cpu" else ""
    return {
        "edition": str(EDITION),
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": device.device_kind + machine,
        "date": datetime.date.today().isoformat(),
        "config": workdir.digest(config),
    }


@functools.cache
def _commit():
    """The commit of this checkout, with "+" if files differ from it; the version outside of a checkout."""
    here = pathlib.Path(dropbn.__file__).resolve().parents[1]

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != here:
            return dropbn.__version__
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return dropbn.__version__


def refuse_another(finished: Finished, config: ConfigDict) -> None:
    """Raises for a finished run of another edition, or of another config if it keeps its config's digest."""
    edition = _edition(finished)
    if edition != str(EDITION):
        raise DropbnError(
            f"it was trained by edition {edition} of the code, this is edition {EDITION}, and numbers have "
            "changed between them: train it again in another --workdir"
        )
    if finished.provenance.get("config", workdir.digest(config)) != workdir.digest(config):
        raise DropbnError("it was trained with another config: choose another --workdir")


def refuse_several_editions(cells: Iterable[Cell]) -> None:
    """Raises for members of several editions, whose numbers do not mean the same."""
    found: dict[str, str] = {}
    for cell in cells:
        for one in cell.members:
            found.setdefault(_edition(one), f"{cell.arg}, seed {one.seed}")
    if len(found) > 1:
        told = "; ".join(f"edition {edition}, such as {name}" for edition, name in sorted(found.items()))
        raise DropbnError(
            "Members of several editions cannot stand in one table, because numbers have changed between the "
            f"editions: {told}. Train those of the older edition again, in another --workdir."
        )


def _edition(finished):
    return finished.provenance.get("edition", "1")


def of_cells(cells: Iterable[Cell]) -> dict:
    """What the members of cells come from; facts that differ between members stand side by side."""
    known = [one.provenance for cell in cells for one in cell.members]

    def each(key):
        return sorted({about[key] for about in known if key in about})

    dates = each("date")
    return {
        "device": ", ".join(each("device")),
        "versions": {name: ", ".join(each(name)) for name in ("python", "jax", "flax")},
        "commit": ", ".join(each("commit")),
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    }
