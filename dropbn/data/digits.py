"""Handwritten digits: scikit-learn's 1,797 images of 8x8 pixels, as a TFDS dataset.

Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository (its test
part, 4 bits a pixel). Every fifth image, from the first on, is a test image: 1,437 images are for training,
360 for testing.
"""

import numpy as np
import tensorflow_datasets as tfds

from dropbn.errors import extra


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's handwritten digits, read without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, is_test):
        with extra("data"):
            from PIL import Image
            from sklearn.datasets import load_digits

        digits = load_digits()
        for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (i % 5 == 0) == is_test:
                # 16 levels of grey, spread over a byte. TFDS would need TensorFlow to encode an array.
                image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
                yield i, {"image": image, "label": int(label)}
