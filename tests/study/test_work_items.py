"""Which members train together, and which share their programs."""

from small_members import CELL, members_of

from dropbn.study import work_items
from dropbn.train import feeds, parallel, programs


def test_only_numbers_are_shared(tmp_path):
    """One group for each compilation, with as many members as there are devices."""
    cells = [
        "preresnet8,digits,place=P4",
        "preresnet8,digits,place=a,rate=0.5",  # the same place by Li's name
        "preresnet8,digits,place=P5",
        "preresnet8,digits,place=a,beta=0.5",  # another noise
    ]
    chosen = members_of(tmp_path, *cells, seeds=5)
    todo, refused = work_items.create(chosen)
    assert not refused
    groups = [[item.member.name for item in group] for group in work_items.groups(todo)]
    assert list(map(len, groups)) == [8, 2, 5, 5]
    assert {name.partition(", seed")[0] for name in groups[0] + groups[1]} == set(cells[:2])
    devices = [len(group[0].plan.layout.devices) for group in work_items.groups(todo)]
    assert devices == [8, 8, 5, 5]
    one_by_one = [
        [item.member.name for item in group]
        for group in work_items.groups(work_items.create(chosen, True)[0])
    ]
    assert list(map(len, one_by_one)) == [1] * 20


def test_groups_of_one_structure_share_their_programs(tmp_path):
    """Seeds and rates do not matter; another structure has programs of its own."""
    cells = (CELL, "preresnet8,digits,place=a,rate=0.5", "preresnet8,digits,place=P5")
    todo, _ = work_items.create(members_of(tmp_path, *cells))

    def compiled(item):
        layout = parallel.side_by_side(8)
        plan = item.plan._replace(layout=layout)
        return programs.create(plan, feeds.create([plan] * 8, [item.dataset] * 8))

    one, same, other = map(compiled, todo)
    assert one is same and one is not other and compiled(todo[0]) is one


def test_a_rate_that_also_acts_in_test_mode_is_compiled(tmp_path):
    cells = (CELL, "preresnet8,digits,place=a,rate=0.5")
    chosen = members_of(tmp_path, *cells, overrides=["--config.model.noise.scale_at=test"])
    assert len(list(work_items.groups(work_items.create(chosen)[0]))) == 2
