"""Photographs as squares of one size: the crops and augmentation of studies at 224 pixels, with Pillow."""

from typing import NamedTuple

import numpy as np

from dropbn.errors import extra

with extra("data"):
    from PIL import Image, ImageEnhance


_LONGEST = 16  # times the shorter side


class View(NamedTuple):
    """How an image of any size becomes a square.

    Of an image whose longer side is more than 16 times the shorter one, only the middle is used: resized as a
    whole, one of 1 x 60000 pixels would take gigabytes.

    In training, it is a random part, resized to `part_size` x `part_size` (with `scale`), or the whole image
    with its shorter side resized to `resize`. It is then rotated, cropped to `size` (a random part in the
    middle, a whole image anywhere) and flipped, and its colours are jittered. In test, the shorter side is
    resized to `resize`, and the middle is cropped.

    Attributes:
      size: pixels of a side.
      resize: pixels of the shorter side of a whole image before the crop.
      part_size: pixels of a side of a random part before the crop; 0 is `size`, and nothing is cropped.
      scale: least and largest share of the image's area in a random part, whose sides are between 3:4 and
        4:3 (Szegedy et al. 2015, section 6); empty for the whole image.
      rotation: largest angle to either side, in degrees; the corners are black.
      jitter: j scales brightness, contrast and saturation, in this order, by a U(1 - j, 1 + j) each.
      flip: whether to flip half of the images from left to right.
    """

    size: int
    resize: int
    part_size: int = 0
    scale: tuple[float, ...] = ()
    rotation: float = 0.0
    jitter: float = 0.0
    flip: bool = False

    def test(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 1 or 3) as uint8 (size, size, 3)."""
        return np.asarray(_crop(_shorter_side(_image(pixels), self.resize), self.size, 0.5, 0.5))

    def train(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`test` with augmentation. An image draws all random numbers, even those that it does not use."""
        left, top, angle, flipped = rng.random(4)
        image = _image(pixels)
        if self.scale:
            box = _random_part(image.size, self.scale, rng)
            image = image.resize((self.part_size or self.size,) * 2, Image.Resampling.BILINEAR, box)
            left = top = 0.5
        else:
            image = _shorter_side(image, self.resize)
        if self.rotation:
            image = image.rotate(self.rotation * (2 * angle - 1), Image.Resampling.BILINEAR)
        image = _crop(image, self.size, left, top)
        if self.flip and flipped < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            factor = 1 + self.jitter * (2 * rng.random() - 1)
            image = enhance(image).enhance(factor) if self.jitter else image
        return np.asarray(image)


def _image(pixels):
    most = _LONGEST * min(pixels.shape[:2])
    top, left = (max(0, side - most) // 2 for side in pixels.shape[:2])
    pixels = pixels[top : top + most, left : left + most]
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")


def _shorter_side(image, length):
    factor = length / min(image.size)
    return image.resize([max(length, round(side * factor)) for side in image.size], Image.Resampling.BILINEAR)


def _crop(image, size, left, top):
    """A square of `size`; `left` and `top` are the shares of the rest that stay to its left and above it."""
    x, y = (round((side - size) * share) for side, share in zip(image.size, (left, top), strict=True))
    return image.crop((x, y, x + size, y + size))


def _random_part(size, scale, rng):
    """A random box with the wanted area and sides. If ten do not fit, the largest in the middle."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return (x, y, x + w, y + h)
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    return ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
