"""Wrong inputs and bad days at every door: `python -m tests.hostile` prints how each of them ended.

Commands run as a user starts them, each in a process of its own. They get wrong flags, configs, models, data
and workdirs, and the tools get wrong arguments. Commands are killed, find a full disk, a pipe in a file's
place or no permission, and write where another one does. Nothing leaves the machine. docs/guarantees.md has
the numbers. Not for quick checks: it takes up to half an hour on two cores.
"""
