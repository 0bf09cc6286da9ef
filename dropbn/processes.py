"""Several processes, one for each host: their flags, how they join, and whether they were started alike."""

import hashlib
import json
import os
import sys
from typing import Any

import jax
import jaxlib
from absl import flags

import dropbn
from dropbn import meeting
from dropbn.errors import DropbnError, shown
from dropbn.meeting import NotAll

# A process that is silent for so long counts as dead, and the others end.
HEARTBEAT_SECONDS = 30
_AGREE_SECONDS = 120  # for all to read their flags, once they have met
# Flags that may differ between the processes of one command.
_OWN = {"process_id", "coordinator_address", "wait"}


def define() -> None:
    """Defines the flags of commands that can run as several processes, one for each host."""
    flags.DEFINE_bool(
        "distributed", False, "One process of several, as TPU pod, SLURM, Open MPI or Kubernetes say."
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where nothing else says it.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_integer("wait", 300, "Seconds to wait for the other processes.", lower_bound=1)


def connect() -> None:
    """Joins the other processes, if the flags say that there are some. Only process 0 prints from then on.

    Raises:
      DropbnError: flags that name no place or no number; a port in use; processes that were started with
        other flags, configs or versions, with what differs.
      NotAll: some did not come within --wait seconds.
    """
    given = flags.FLAGS
    if "distributed" not in given:
        return
    if not (given.distributed or given.coordinator_address):
        if given.num_processes is not None or given.process_id is not None:
            raise DropbnError("give --coordinator_address=host:port of process 0 too, or --distributed alone")
        return
    if given.coordinator_address:
        place = meeting.Place.of(given.coordinator_address)
        if None not in (given.num_processes, given.process_id):
            if given.process_id >= given.num_processes:
                raise DropbnError(
                    f"--process_id={given.process_id} with --num_processes={given.num_processes}: they are "
                    f"numbered from 0 to {given.num_processes - 1}"
                )
            if given.process_id:
                meeting.call(place, given.num_processes, given.process_id, given.wait)
            else:
                meeting.listen(place, given.num_processes, given.wait)
    try:
        jax.distributed.initialize(
            given.coordinator_address,
            given.num_processes,
            given.process_id,
            initialization_timeout=given.wait,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        kind = NotAll if "DEADLINE_EXCEEDED" in str(error) else DropbnError
        raise kind(f"cannot join the other processes: {shown(str(error).splitlines()[0])}") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    agree(facts())


def facts() -> dict[str, str]:
    """What all processes must have in common: name -> value, both short."""
    found = {"dropbn": dropbn.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    found["python"] = ".".join(map(str, sys.version_info[:2]))
    for name, flag in flags.FLAGS.flags_by_module_dict().items():
        if name.startswith("dropbn.") or name == sys.argv[0]:
            for each in flag:
                value: Any = each.value
                if each.name == "config" and hasattr(value, "to_dict"):
                    found |= _flat(value.to_dict(), "config.")
                elif each.name not in _OWN:
                    found[f"--{each.name}"] = _short(value)
    return found


def _flat(tree, prefix):
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: _short(value)}
    return flat


def _short(value):
    """A value as text, a long one with a digest."""
    text = repr(value)
    return (
        text
        if len(text) <= 100
        else f"{text[:80]}... {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    )


def agree(
    mine: dict[str, str],
    topic: str = "start",
    heading: str = "the processes were not started alike",
    seconds: float = _AGREE_SECONDS,
) -> None:
    """Raises in all processes, with what differs, unless their facts are equal. No device takes part.

    Args:
      mine: name -> value.
      topic: what it is about; each topic is agreed on once.
      heading: what the error says before it lists what differs.
      seconds: how long the others may take to come to it; one that has died is noticed before.
    """
    client, index, number = _client(), jax.process_index(), jax.process_count()
    if number == 1:
        return
    place, patience = f"dropbn/{topic}", int(seconds * 1000)
    client.key_value_set(f"{place}/{index}", json.dumps(mine))
    if index == 0:
        all_facts = [
            json.loads(client.blocking_key_value_get(f"{place}/{i}", patience)) for i in range(number)
        ]
        client.key_value_set(f"{place}/verdict", differing(all_facts, heading))
    verdict = client.blocking_key_value_get(f"{place}/verdict", patience)
    client.key_value_set(f"{place}/{index}/read", "yes")
    if verdict != "agreed":
        if index == 0:  # The others can read it only as long as this process lives.
            for i in range(number):
                client.blocking_key_value_get(f"{place}/{i}/read", patience)
        meeting.leave()
        raise DropbnError(verdict)


def differing(all_facts: list[dict[str, str]], heading: str) -> str:
    """The sentence that says in what processes differ; "agreed" if they do not."""
    lines = []
    for name in dict.fromkeys(name for each in all_facts for name in each):
        values: dict[str, list[int]] = {}
        for i, each in enumerate(all_facts):
            values.setdefault(each.get(name, "missing"), []).append(i)
        if len(values) > 1:
            told = [f"{value} in process {', '.join(map(str, of))}" for value, of in values.items()]
            lines.append(f"{name}: {'; '.join(told)}")
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n  ".join([heading, *lines[:10], *more]) if lines else "agreed"


def tell(topic: str, text: str | None, seconds: float) -> str:
    """What process 0 tells all processes about a topic; the others give None."""
    key = f"dropbn/{topic}/told"
    if text is not None:
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, int(seconds * 1000))


def _client():
    from jax._src import distributed  # JAX has no public name for it; orbax takes it from here, too.

    return distributed.global_state.client
