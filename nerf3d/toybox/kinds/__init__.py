"""All kinds of object, one archetype each; importing this package fills the catalogue in a fixed order."""

from nerf3d.toybox.kinds import animals, buildings, food, furniture, household, plants, solids, tools, vehicles
from nerf3d.toybox.kinds.registry import KINDS as CATALOGUE
from nerf3d.toybox.kinds.registry import Kind

TAUGHT = (
    *("ball", "cube", "cylinder", "cone", "pyramid", "egg", "donut", "apple", "ice cream", "cake", "mushroom"),
    *("table", "chair", "stool", "bed", "sofa", "lamp", "mug", "bottle", "vase", "teapot", "umbrella", "hat"),
    *("barrel", "present", "tree", "pine tree", "cactus", "hammer", "house", "lighthouse"),
    *("snowman", "robot", "duck", "penguin", "car", "truck", "rocket", "boat", "plane"),
)
"""The kinds that the shipped prior is trained on: what two CPU cores can teach well in two hours. The rest of the
catalogue is drawn just the same and waits for a longer training."""

KINDS: dict[str, Kind] = {name: CATALOGUE[name] for name in TAUGHT}

__all__ = ["CATALOGUE", "KINDS", "TAUGHT", "Kind", "animals", "buildings", "food", "furniture", "household", "plants"]
__all__ += ["solids", "tools", "vehicles"]
