"""Downloads and prepares a stock dataset once.

    python -m dropbn prepare cifar10 [DIR]

All datasets except digits need TensorFlow for that (`pip install tensorflow-cpu`), but not to be read later.
Put the archives of imagenet2012 into DIR/downloads/manual first, because no program may download them.
"""

import sys

from dropbn import cli
from dropbn.data import stock
from dropbn.errors import DropbnError


def main(arguments: list[str]) -> None:
    """Prepares the dataset named on the command line."""
    if len(arguments) not in (1, 2):
        sys.exit("usage: python -m dropbn prepare NAME [DIR]")
    try:
        builder = stock.prepare(*arguments)
    except DropbnError as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: preparing {arguments[0]} needs {error.name}: pip install tensorflow-cpu")
    except Exception as error:  # tensorflow-datasets raises many kinds: network, checksums, manual downloads.
        sys.exit(f"error: {arguments[0]} cannot be prepared: {error}")
    print(f"{arguments[0]} is prepared in {builder.data_dir}")


def run() -> None:
    """The command `dropbn prepare`."""
    cli.answer_help(__doc__, "NAME", "[DIR]")
    main(sys.argv[1:])
