"""Settings: what is behind, and partly in front of, a subject.

Coordinates: the picture is the unit square, x to the right, y down. A subject stands in the middle, its feet at about y = 0.86,
and hides most of it, so what tells a setting is large and at the sides, the top and the bottom.
"""

import dataclasses
from types import MappingProxyType

import skia

from proxy_jax.data.microworld import nature, places
from proxy_jax.data.microworld.scenery import Draw, rgb


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to draw a setting, in one of its variations 0 ... 3: first `back`, then the subject, then `front`."""

    back: Draw
    front: Draw | None = None


def _either_way(draw: Draw) -> Draw:
    """From a drawing in two versions, 0 and 1, one in four variations: the odd ones are mirrored."""

    def drawn(canvas: skia.Canvas, variation: int) -> None:
        canvas.save()
        if variation % 2 == 1:
            canvas.translate(1, 0)
            canvas.scale(-1, 1)
        draw(canvas, variation // 2)
        canvas.restore()

    return drawn


def _setting(back: Draw, front: Draw | None = None) -> Setting:
    return Setting(_either_way(back), None if front is None else _either_way(front))


SETTINGS: MappingProxyType[str, Setting] = MappingProxyType(
    {
        "jungle": _setting(nature.jungle, nature.jungle_front),
        "snow": _setting(nature.snow),
        "beach": _setting(nature.beach),
        "cobblestone": _setting(places.cobblestone),
        "pink_fabric": _setting(places.pink_fabric),
        "wooden_floor": _setting(places.wooden_floor),
        "city": _setting(places.city),
        "mountain": _setting(nature.mountain),
        "blue_house": _setting(places.blue_house),
        "purple_rug": _setting(nature.purple_rug),
        "wheat_field": _setting(nature.wheat_field, nature.wheat_field_front),
        "autumn_tree": _setting(nature.autumn_tree),
        "eiffel_tower": _setting(places.eiffel_tower),
        "water": _setting(nature.water, nature.water_front),
        "milk": _setting(nature.milk, nature.milk_front),
        "sunflowers": _setting(nature.sunflowers, nature.sunflowers_front),
        "mirror": _setting(places.mirror),
        "sidewalk": _setting(places.sidewalk),
        "dirt_road": _setting(nature.dirt_road),
        "white_rug": _setting(places.white_rug),
        "studio_cream": _setting(places.studio(rgb(0xEADFC8))),
        "studio_blue": _setting(places.studio(rgb(0x8FB8E0))),
        "studio_green": _setting(places.studio(rgb(0x9CCBA6))),
        "studio_pink": _setting(places.studio(rgb(0xF2C4CF))),
        "lawn": _setting(nature.lawn),
        "room": _setting(places.room),
    }
)
