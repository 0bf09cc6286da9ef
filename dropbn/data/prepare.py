"""Downloads and prepares a stock dataset once.

    python -m dropbn prepare cifar10 [DIR]

All datasets except digits need TensorFlow for that (`pip install tensorflow-cpu`), but not to be read later.
Put the archives of imagenet2012 into DIR/downloads/manual first, because no program may download them.
"""

from dropbn import cli
from dropbn.data import stock
from dropbn.errors import DropbnError


def main(name: str, directory: str = "") -> None:
    """Prepares the dataset named on the command line."""
    try:
        builder = stock.prepare(name, directory)
    except DropbnError:
        raise
    except ImportError as error:
        raise DropbnError(f"preparing {name} needs {error.name}: pip install tensorflow-cpu") from error
    except Exception as error:  # tensorflow-datasets raises many kinds: network, checksums, manual downloads.
        raise DropbnError(f"{name} cannot be prepared: {error}") from error
    print(f"{name} is prepared in {builder.data_dir}")


def run() -> None:
    """The command `dropbn prepare`."""
    cli.run(main, arguments=["NAME"], optional=["DIR"])
