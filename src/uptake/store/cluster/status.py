"""The state of a cluster's shards: which run, what they did, and which are missing."""

from typing import Any

from uptake.errors import UptakeError
from uptake.store.cluster.connect import NAMESPACE, connect
from uptake.store.files import one_line
from uptake.store.inventory import TABLE
from uptake.store.passages.table import Table
from uptake.store.remote.objects import locate

_PATIENCE = 10.0  # seconds that a shard may take to report; it reports while it searches


def status(address: str) -> list[dict[str, Any]]:
    """Return one record a shard's actor, in the order of stores and rows, and one a shard without any.

    `state` is "ready", "silent" (Ray may be starting it again) or "missing"; a shard that is not
    ready has `reason` in the place of figures. `queries_a_second` are those of the last minute.
    """
    ray = connect(address)
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if _ours(each)]
    requests = {}
    records = []
    for name in sorted(names):
        try:
            requests[name] = ray.get_actor(name, NAMESPACE).about.remote()
        except ValueError:  # it has ended in the meantime
            continue
    for name, request in requests.items():
        store, rows, replica = name.split("/")
        uid = store.partition("@")[0]
        first, _, stop = rows.partition("-")
        record: dict[str, Any] = {"uid": uid, "first": int(first), "stop": int(stop), "replica": int(replica)}
        try:
            about = ray.get(request, timeout=_PATIENCE)
            records.append(record | about | {"state": "ready"})
        except ray.exceptions.RayError as error:
            records.append(record | {"state": "silent", "reason": one_line(error)})
    records += _missing(records)
    return sorted(records, key=lambda each: (each["uid"], each["first"], each["replica"]))


def _ours(actor: dict[str, Any]) -> bool:
    return bool(actor["namespace"] == NAMESPACE and actor["name"].count("/") == 2)


def _missing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a record for each range of a store that has rows and no actor, as wide as its others are."""
    found = []
    for uid in dict.fromkeys(each["uid"] for each in records):
        mine = [each for each in records if each["uid"] == uid]
        stores = [each["store"] for each in mine if "store" in each]
        if not stores:
            continue
        try:
            slots = Table.open(locate(stores[0]) / TABLE).slots
        except UptakeError:  # it is gone, or this machine does not see it
            continue
        for wide in {each["stop"] - each["first"] for each in mine}:
            there = {each["first"] for each in mine if each["stop"] - each["first"] == wide}
            found += [
                {
                    "uid": uid,
                    "first": first,
                    "stop": first + wide,
                    "replica": 0,
                    "store": stores[0],
                    "state": "missing",
                    "reason": "no actor holds these rows; the next search starts one",
                }
                for first in range(0, slots, wide)
                if first not in there
            ]
    return found
