"""Members of a study of configs/small.py that train in seconds."""

from dropbn.study import members, progress, training, work_items
from dropbn.train import workdir

TINY = (
    "--config.model.width=4",
    "--config.duration=2 epochs",
    "--config.checkpoint_every=1 epochs",
    "--config.eval.train_examples=100",
)


CELL = "preresnet8,digits,place=P4"


# Compiled sooner, where the network does not matter.
PERCEPTRON = (
    "--config.model.name=mlp",
    "--config.model.depth=1",
    "--config.model.block=bn relu dense",
    "--config.model.head=dense",
)


def members_of(directory, *cells, seeds=1, overrides=()):
    return members.create("configs/small.py", cells or [CELL], seeds, directory, (*TINY, *overrides))


def run(chosen, together=False):
    todo, refused = work_items.create(chosen, together)
    with progress.StudyProgress(len(todo), 0, 1.0) as shown:
        return refused | training.train(todo, shown)


def records_of(member):
    found = workdir.read_metrics(member.directory)
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]
