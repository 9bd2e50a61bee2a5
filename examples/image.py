"""Four pictures of one sentence, in memory, from a prior that stays loaded.

python examples/image.py [GROUP.KEY=VALUE ...]
"""

import sys

from PIL import Image

import dreamkiln

if __name__ == "__main__":
    prior = dreamkiln.load_prior("toybox")
    pictures = dreamkiln.generate(prior, "a yellow duck", overrides=sys.argv[1:], num_images=4, seed=7)
    for index, picture in enumerate(pictures):  # uint8 (H, W, 3)
        Image.fromarray(picture).save(f"duck-{index}.png")
