"""Environments that come with the package, registered with Gymnasium as "upslope/NAME-vN" when this package is imported.

`open_environments` and every command import it; for `gymnasium.make("upslope/Inventory-v0")` write `import upslope.environments`
first. An environment's own module is imported when one is made.
"""

import gymnasium

_REGISTERED: dict[str, tuple[str, int | None]] = {  # id: where it is, and steps after which an episode is cut off
    "upslope/FrozenLake-v0": ("frozen_lake:FrozenLake", 100),
    "upslope/TwoGoals-v0": ("two_goals:TwoGoals", 50),
    "upslope/Inventory-v0": ("inventory:Inventory", 50),
    "upslope/LotSizing-v0": ("inventory:LotSizing", 50),
    "upslope/Dispatch-v0": ("dispatch:Dispatch", None),
    "upslope/FourRooms-v0": ("four_rooms:FourRooms", 60),
    "upslope/PointMaze-v0": ("point_maze:PointMaze", 150),
    "upslope/Warehouse-v0": ("inventory:Warehouse", 50),
}

for _name, (_where, _limit) in _REGISTERED.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=f"upslope.environments.{_where}", max_episode_steps=_limit)
