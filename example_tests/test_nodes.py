"""A key-value store that is replicated over three guests on three hosts, and survives the death of its leader."""

from __future__ import annotations

import asyncio

import pytest

from pytest_propolis import Host, NodeGroup, TestVm, VmFactory

REPLICA = r"""
apply() {  # the log, entry by entry, to this replica
    n=1
    while entry=$(kv wait log/$n); do
        echo "$entry" >>/tmp/store
        kv put applied/$n/{name} yes
        [ "$entry" != end ] || return 0
        n=$((n + 1))
    done
}
append() {  # an entry to the log; it counts when two replicas have it
    n=$(($(kv list log | grep -c .) + 1))
    kv add log/$n "$1"
    until [ $(kv list applied/$n | grep -c .) -ge 2 ]; do sleep 0.1; done
}
rm -f /tmp/store
apply &
barrier up 3 >/dev/null
baton take leader
case $(kv list log | grep -c .) in
    0) append x=1; append y=1; kv put half yes; sleep 1000 ;;  # the first leader never gets any further
    2) append x=2; append end ;;
esac
baton pass leader
wait
cat /tmp/store
"""


@pytest.mark.multi_node(3)
@pytest.mark.requires(server="engine")
async def test_a_replicated_store_survives_its_leader(
    vm_factory: VmFactory, remote_hosts: tuple[Host, ...], nodes: NodeGroup
) -> None:
    async def replica(vm: TestVm) -> str:
        async with vm.as_node(nodes, vital=False):
            return await vm.run(REPLICA.replace("{name}", vm.name))

    async with asyncio.TaskGroup() as starting:
        tasks = [
            starting.create_task(vm_factory.start(f"replica-{number}", guest="micro", host=host))
            for number, host in enumerate(remote_hosts)
        ]
    vms = {task.result().name: task.result() for task in tasks}
    replicas = {name: asyncio.create_task(replica(vm)) for name, vm in vms.items()}
    await nodes.kv.wait("half")

    leader = nodes.holder("leader")
    assert leader is not None
    await vms[leader].stop()

    results = await asyncio.gather(*replicas.values(), return_exceptions=True)
    survivors = [result for name, result in zip(replicas, results, strict=True) if name != leader]
    assert survivors == ["x=1\ny=1\nx=2\nend"] * 2
    assert isinstance(results[list(replicas).index(leader)], Exception)
