"""upslope tasks [QUERY] [--json]"""

import json
from typing import Annotated

import tyro


def command(
    query: tyro.conf.Positional[str] = "",
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the tasks.

    Args:
        query: words that the name or the description must have.
        as_json: one JSON object per task, in a list.
    """
    from upslope.tasks.base import list_tasks

    found = list_tasks(query)
    if as_json:
        print(json.dumps(found, indent=2, default=str))
        return
    if not found:
        print(f"no task matches '{query}'. `upslope tasks` lists all; your own data: upslope train METHOD --data FILE.")
        return
    width = max(len(task["name"]) for task in found)
    for task in found:
        print(f"{task['name']:<{width}}  {task['description']}")
